"""``make bench-kvm``, ``python -m bench.kvm [ROW …]``: virtual machines against QEMU's smallest, on this host's KVM.

Figures are those of the host whose name stands above them. Under an emulator (the lab's) or a KVM in software they are
labelled so, and only their ratios mean anything. Rows that cannot be had here say why.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from tests import images

from bench import machines, qemu
from bench.measure import Contestant, Row, alternate, command
from mamushka.linux.memory import PAGEMAP
from mamushka.machine import maker, state
from mamushka.machine.board import Board
from mamushka.machine.devices.virtio.block import Block
from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.executors.kvm import KvmExecutor
from mamushka.machine.machine import Machine
from mamushka.machine.memory import Memory, shared_region
from mamushka.machine.statistics import MemoryUse, memory_of, memory_use
from mamushka.machine.vcpu import Entry
from mamushka.storage.block import open_disk

FORKED = 512 << 20  # bytes of the machine whose forks are measured


class Place(NamedTuple):
    """Where things lie, how many turns each contestant takes, and how much of it is done."""

    path: str
    rounds: int
    read: int  # bytes, of which figures for a GiB are made
    watched: float  # seconds of an idle and of a busy guest


def first(place: Place) -> str:
    """CPU time until a guest's first instruction has run and the process has ended; ours from the fork on, with all
    modules in, as the shim forks it; QEMU's from its exec on, as it is used."""
    image = machines.mini(place.path)
    maker.preload()

    def ours() -> float:
        return machines.forked(lambda: machines.board(image)[1]())

    return _pair(place, "first", "until the first instruction, CPU time", 0.3, ours, _executed(qemu.words(image)))


def boot(place: Place) -> str:
    """``run --runtime vm`` of ``true``, its root shared by virtio-fs, against QEMU's boot to the end of such a program.

    QEMU has no root but its initramfs, and no file server: what ours does more stays in our figure.
    """
    initial = machines.initramfs(place.path)
    root = _root(place)
    ours = command(*_ours(place, "run", "--rm"), *_vm(root), "true")
    words = qemu.words(machines.stock().image, machines.line(), initial)
    return _pair(place, "boot", "run of true, cold", 1.0, ours, _timed(words))


def warm(place: Place) -> str:
    """The same from a warm snapshot, which the turn that does not count makes, against its own cold boot."""
    root = _root(place)
    cold = command(*_ours(place, "run", "--rm"), *_vm(root), "true")
    ours = command(*_ours(place, "run", "--rm"), *_vm(root, cold=False), "true")
    return _pair(place, "warm", "run of true, warm", 0.15, ours, cold, peer="cold")


def exits(place: Place) -> str:
    """Exits of one boot to the end of a program: those that the kernel served, and those that reached Python."""
    path = machines.initramfs(place.path)
    with open(path, "rb") as file:
        initial = file.read()
    made, run = machines.board(machines.stock().image, initial, machines.line())
    try:
        before = made.machine.executor.counts()
        run()
        after = made.machine.executor.counts()
        python = sum(sum(counts.values()) for counts in made.machine.exits)
        kernel = after.get("exits", 0) - before.get("exits", 0)
        faults = after.get("pf_taken", 0) - before.get("pf_taken", 0)
    finally:
        made.close()
    said = f"{python} reached Python, of {kernel} in all, {faults} of them for memory"
    return f"exits    one boot: {said}; {_peers_exits(path)}"


def _peers_exits(initramfs: str) -> str:
    if qemu.lacking():
        return f"QEMU's are not counted: {qemu.lacking()}"
    # It stays when its guest has ended, and so do its counters.
    machine = qemu.Counted(qemu.words(machines.stock().image, machines.line(), initramfs, "-no-shutdown"))
    try:
        machine.ended()
        ports, memory = machine.count("io_exits"), machine.count("mmio_exits")
        return (
            f"QEMU {ports} for ports and {memory} for devices' memory, of {machine.count('exits')} in all, "
            f"{machine.count('pf_taken')} of them for memory"
        )
    finally:
        machine.close()


def reads(place: Place) -> str:
    """Exits while a guest reads a file's content through pmem, and through a disk; scaled to a GiB."""
    path = f"{place.path}/content"
    with open(path, "wb") as file:
        for _ in range(place.read >> 20):
            file.write(os.urandom(1 << 20))

    def plug(board: Board) -> None:
        board.pmem(os.open(path, os.O_RDONLY | os.O_CLOEXEC), place.read)
        board.add("disk", Block(open_disk(path, "raw", writable=False), name="disk", serial="bench"))

    guest = machines.Shell(_reading(("pmem0", "pmem0", "vda"), "nd_e820", "nd_pmem"), plug)
    try:
        guest.start()
        marks = [guest.until(f"mark{number}") for number in range(5)]
    finally:
        guest.board.close()
    scale = (1 << 30) / place.read
    python, kernel = (_scaled([mark[which] for mark in marks], scale) for which in (0, 1))
    cells = [
        f"{name} {reached:.0f} to Python, {all:.0f} in all"
        for name, reached, all in zip(("pmem", "the same again", "disk"), python, kernel, strict=True)
    ]
    cells.append(_peers_reads(place, path, scale))
    return f"reads    exits for 1 GiB, from {place.read >> 20} MiB: {'; '.join(cells)}"


def _scaled(marks: Sequence[int], scale: float) -> list[float]:
    """What lies between marks, without what it takes to say one: the first two have nothing else between them."""
    said = marks[1] - marks[0]
    return [max(0, late - early - said) * scale for early, late in pairwise(marks[1:])]


def _reading(disks: Sequence[str], *modules: str) -> bytes:
    """A guest that reads these disks to their ends, past its own cache, and says marks before and after each."""
    script = "mkdir -p /dev /sys; mount -t devtmpfs d /dev; mount -t sysfs s /sys\n"
    script += "".join(f"while [ ! -b /dev/{name} ]; do usleep 10000; done\n" for name in disks)
    script += "dd if=/dev/zero of=/dev/null bs=1M count=4 2>/dev/null\nsleep 1\n"
    for number, name in enumerate((None, None, *disks)):
        read = f"dd if=/dev/{name} of=/dev/null bs=1M iflag=direct 2>/dev/null\n" if name else ""
        script += f"{read}echo mark{number} >/dev/console\nusleep 500000\n"  # until somebody has looked
    return machines.files(f"{script}sleep 5\n", ("virtio_blk", *modules))


def _peers_reads(place: Place, path: str, scale: float) -> str:
    if qemu.lacking():
        return f"QEMU's are not counted: {qemu.lacking()}"
    initramfs = f"{place.path}/reading"
    with open(initramfs, "wb") as file:
        file.write(_reading(("vda",)))
    drive = ("-drive", f"if=none,id=d,format=raw,readonly=on,file={path}", "-device", "virtio-blk-device,drive=d")
    machine = qemu.Counted(qemu.words(machines.stock().image, machines.line(), initramfs, *drive, serial=True))
    try:
        (found,) = _scaled([machine.until(f"mark{number}") for number in range(3)], scale)
        return f"QEMU's disk {found:.0f} in all (its microvm has no pmem)"
    finally:
        machine.close()


def quiet(place: Place) -> str:
    """Exits that reach Python of a guest that sleeps, and of one that computes."""
    script = "echo mark0 >/dev/console\nsleep 1000 &\nwait\n"
    cells = []
    for name, text, most in (("idle", script, 5), ("busy", "echo mark0 >/dev/console\nwhile :; do :; done\n", 10)):
        mounted = f"mkdir -p /dev; mount -t devtmpfs d /dev\n{text}"
        guest = machines.Shell(machines.files(mounted, ("virtio_rng",)), lambda board: board.add("rng", Rng()))
        try:
            guest.start()
            guest.until("mark0")
            time.sleep(2)
            before = guest.count()
            time.sleep(place.watched)
            python, kernel = ((late - early) / place.watched for early, late in zip(before, guest.count(), strict=True))
        finally:
            guest.board.close()
        cells.append(f"{name} {python:.1f}/s of {kernel:.0f}/s (at most {most}: {_verdict(python <= most)})")
    return f"quiet    exits that reach Python: {'; '.join(cells)}"


def memory(place: Place) -> str:
    """What a machine keeps resident beside its guest's memory: the monitor; its shim and file server apart; QEMU."""
    root = _root(place)
    started = subprocess.run(
        [*_ours(place, "run", "-d"), *_vm(root), "sleep", "1000"], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        time.sleep(3)
        monitors = _called("mamushka-vm")
        ours, servers, shims = (_use(pids) for pids in (monitors, _called("virtiofsd"), map(_parent, monitors)))
    finally:
        subprocess.run(_ours(place, "rm", "-f", started), check=False, capture_output=True)
    beside = f"its shim {shims.monitor_pss >> 10} KiB, virtiofsd {servers.monitor_pss >> 10} KiB"
    own, guests = ours.monitor_pss, [ours.guest_pss + servers.guest_pss]
    cells = [f"mamushka {own >> 10} KiB, {beside}"]
    words = qemu.words(machines.stock().image, machines.line().replace(b"panic=-1", b"panic=0"))
    if words:
        machine = subprocess.Popen(words)  # its kernel finds no root, and stops there
        try:
            time.sleep(10)
            found = _use((machine.pid,))
        finally:
            machine.kill()
            machine.wait()
        theirs = found.monitor_pss
        guests.append(found.guest_pss)
        cells.append(f"QEMU {theirs >> 10} KiB: {own / theirs:.2f}x, budget 0.5x: {_verdict(own <= theirs / 2)}")
    cells.append(f"the guests' own {' and '.join(f'{size >> 20} MiB' for size in guests)}")
    return f"memory   beside the guest's memory, PSS: {'; '.join(cells)}"


def clone(place: Place) -> str:
    """A copy of a live machine of 64 MiB, from the snapshot to its first exit."""
    parent = _live(64 << 20, held=True)
    saved, frozen = state.capture(parent, {}), state.freeze(parent)
    taken = []
    for _ in range(max(50, place.rounds)):
        begin = time.perf_counter()
        child = _child(saved, frozen)
        taken.append(time.perf_counter() - begin)
        child.close()
    parent.close()
    frozen.close()
    median, best = statistics.median(taken), min(taken)
    said = f"{median * 1000:.2f} ms (the quickest {best * 1000:.2f})"
    return f"clone    64 MiB to its first exit: {said}, at most 2 ms: {_absolute(median <= 0.002)}"


def fork(place: Place) -> str:
    """What each further child of a machine that uses all of its 512 MiB takes, to its first exit, and has of its own.

    What its parent stands still for is the row ``freeze``.
    """
    parent = _live(FORKED, held=False)
    (region,) = parent.memory
    piece = b"\1" * (1 << 20)
    for start in range(1 << 20, FORKED, len(piece)):
        region.view[start : start + len(piece)] = piece
    parent.pause()
    saved, frozen = state.capture(parent, {}), state.freeze(parent)
    parent.resume()
    frozen.tidy()
    taken, private = [], 0
    for _ in range(max(50, place.rounds)):
        begin = time.perf_counter()
        child = _child(saved, frozen)
        taken.append(time.perf_counter() - begin)
        private = max(private, memory_of(child.memory).guest_private)
        child.close()
    parent.close()
    frozen.close()
    said = f"{statistics.median(taken) * 1000:.2f} ms to its first exit, {private >> 10} KiB of its own"
    return f"fork     a child of {FORKED >> 20} MiB: {said}, at most 2048: {_verdict(private <= 2 << 20)}"


def _live(size: int, *, held: bool) -> Machine:
    """A machine of a few instructions that calls again and again."""
    memory = Memory((shared_region(0, size),))
    memory.write(0x1000, b"\x66\xba\x00\x06\xee\xeb\xf9")  # mov dx, 0x600; out dx, al; again
    made = Machine(KvmExecutor(), memory)
    made.start(Entry("protected", {"rip": 0x1000, "rsp": 0x8000}), held=held)
    return made


def _child(saved: state.Saved, frozen: state.Frozen) -> Machine:
    """Another one that goes on there, and has called once."""
    child = Machine(KvmExecutor(), state.private_memory(saved, frozen.fd))
    state.reinstate(child, {}, saved)
    child.vcpus[0].run()
    return child


def freeze(place: Place) -> str:
    """What a live machine that uses all of its memory stands still for, and stands still for again."""
    cells, took = [], {}
    for size in (64 << 20, 1 << 30):
        first, later = zip(*(_frozen_twice(size) for _ in range(max(3, place.rounds // 3))), strict=True)
        took[size] = statistics.median(first)
        again = statistics.median(later) * 1000
        cells.append(f"{size >> 20} MiB {took[size] * 1000:.2f} ms, again with 4 MiB changed {again:.2f} ms")
    kept = took[1 << 30] < took[64 << 20] + 0.005
    return f"freeze   the parent's pause, CPU time: {'; '.join(cells)}; independent of the size: {_verdict(kept)}"


def _frozen_twice(size: int) -> tuple[float, float]:
    memory = Memory((shared_region(0, size),))
    for start in range(0, size, 1 << 20):
        memory.write(start, b"\1" * (1 << 20))
    memory.write(0x1000, b"\xeb\xfe")  # again: jmp again
    machine = Machine(KvmExecutor(), memory)
    machine.start(Entry("protected", {"rip": 0x1000, "rsp": 0x8000}))
    pagemap = os.open(PAGEMAP, os.O_RDONLY)
    taken = []
    for _ in range(2):
        ready = state.ready(machine)
        memory.write(0x100000, b"\2" * (4 << 20))
        begin = time.process_time()
        machine.pause()
        state.capture(machine, {})
        frozen = state.freeze(machine, ready, pagemap)
        machine.resume()
        taken.append(time.process_time() - begin)
        frozen.close()
    machine.close()
    os.close(pagemap)
    return taken[0], taken[1]


# What rows are made of


def _root(place: Place) -> str:
    """A root in which a shell runs; made for the first row that wants it."""
    path = f"{place.path}/rootfs"
    if not os.path.isdir(path):
        images.add_busybox(path)
    return path


def _ours(place: Place, *words: str) -> list[str]:
    program = os.path.join(os.path.dirname(sys.executable), "mamushka")
    return [program, "--data-root", f"{place.path}/data", "--run-root", f"{place.path}/run", *words]


def _vm(root: str, *, cold: bool = True) -> list[str]:
    kernel = os.path.dirname(os.path.dirname(machines.stock().image))
    return [
        *(("--cold",) if cold else ()),
        "--runtime",
        "vm",
        "--network",
        "none",
        "--kernel",
        kernel,
        "--rootfs",
        root,
    ]


def _timed(words: list[str]) -> Contestant | None:
    return command(shutil.which(words[0]) or words[0], *words[1:]) if words else None


def _executed(words: list[str]) -> Contestant | None:
    return (lambda: machines.executed(words)) if words else None


def _pair(
    place: Place, name: str, what: str, budget: float, ours: Contestant, theirs: Contestant | None, peer: str = "QEMU"
) -> str:
    contestants = {"mamushka": ours, **({peer: theirs} if theirs is not None else {})}
    samples = alternate(contestants, place.rounds)
    row = Row(name, what, "s", budget, "each", samples)
    cells = [f"{who} {statistics.median(found) * 1000:.1f} ms" for who, found in samples.items()]
    ratio = "".join(f"{number:.2f}x, budget {budget:g}x: " for number in row.ratios().values())
    verdict = "no QEMU here" if row.kept is None else _verdict(row.kept)
    return f"{name:8} {what}: {', '.join(cells)}: {ratio}{verdict} (medians of {place.rounds})"


def _verdict(kept: bool) -> str:
    return "kept" if kept else "BROKEN"


def _absolute(kept: bool) -> str:
    """Of a limit in seconds, which no emulation can tell anything about."""
    return "not judged under emulation" if machines.emulated() else _verdict(kept)


def _called(name: str) -> list[int]:
    """Processes of this name."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/comm") as file:
                if file.read().strip() == name:
                    found.append(int(entry))
        except OSError:
            continue  # it has ended
    return found


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def _use(pids: Iterable[int]) -> MemoryUse:
    """Of processes together; guests' is what is as large as a guest's memory."""
    found = [_use_of(pid) for pid in pids]
    return MemoryUse(guest_pss=sum(use.guest_pss for use in found), monitor_pss=sum(use.monitor_pss for use in found))


def _use_of(pid: int) -> MemoryUse:
    with open(f"/proc/{pid}/smaps", "rb") as file:
        lines = file.readlines()
    heads = [line.split(b" ")[0].split(b"-") for line in lines if not line.split(b" ")[0].endswith(b":")]
    ranges = [(int(first, 16), int(last, 16)) for first, last in heads]
    return memory_use(lines, [item for item in ranges if item[1] - item[0] >= machines.MEMORY])


ROWS: dict[str, Callable[[Place], str]] = {
    "clone": clone,
    "fork": fork,
    "freeze": freeze,
    "first": first,
    "boot": boot,
    "warm": warm,
    "exits": exits,
    "reads": reads,
    "quiet": quiet,
    "memory": memory,
}
# Of the rows, those whose guests are a few instructions: every KVM can run them.
_SMALL = ("clone", "fork", "freeze")


def main() -> int:
    """Print the rows; 1 when a promise is broken, 2 when a row could not be run."""
    parser = argparse.ArgumentParser(prog="python -m bench.kvm", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", choices=[[], *ROWS], help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=10, help="turns of each contestant (default %(default)s)")
    parser.add_argument("--read", type=int, default=1024, help="MiB that guests read (default %(default)s)")
    parser.add_argument("--watched", type=float, default=10.0, help="seconds of quiet guests (default %(default)s)")
    parser.add_argument("--place", default="/var/tmp", help="a directory on no overlay (default %(default)s)")
    given = parser.parse_args()
    print(f"on {machines.host()}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors", flush=True)
    why, status = machines.lacking(), 0
    with tempfile.TemporaryDirectory(prefix="mamushka-bench-", dir=given.place) as path:
        for name in given.rows or ROWS:
            if why and name not in _SMALL:
                print(f"{name:8} not here: {why}")
                continue
            try:
                said = ROWS[name](Place(path, given.rounds, given.read << 20, given.watched))
            except Exception as error:
                print(f"{name:8} failed: {type(error).__name__}: {error}", file=sys.stderr)
                status = 2
                continue
            print(said, flush=True)
            status = status or int("BROKEN" in said)
    return status


if __name__ == "__main__":
    sys.exit(main())
