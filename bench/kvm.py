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
from collections.abc import Callable
from typing import NamedTuple

from tests import images

from bench import machines
from bench.measure import Contestant, Row, alternate, command
from mamushka.linux.memory import PAGEMAP
from mamushka.machine import maker, state
from mamushka.machine.board import Board
from mamushka.machine.devices.virtio.block import Block
from mamushka.machine.devices.virtio.rng import Rng
from mamushka.machine.executors.kvm import KvmExecutor
from mamushka.machine.machine import Machine
from mamushka.machine.memory import Memory, shared_region
from mamushka.machine.statistics import memory_use
from mamushka.machine.vcpu import Entry
from mamushka.storage.block import open_disk

READ = 64 << 20  # bytes, of which figures for a GiB are made
WATCHED = 10.0  # seconds of an idle and of a busy guest


class Place(NamedTuple):
    """Where things lie, and how many turns each contestant takes."""

    path: str
    rounds: int


def first(place: Place) -> str:
    """CPU time until a guest's first instruction has run and the process has ended; ours from the fork on, with all
    modules in, as the shim forks it; QEMU's from its exec on, as it is used."""
    image = machines.mini(place.path)
    maker.preload()

    def ours() -> float:
        return machines.forked(lambda: machines.board(image)[1]())

    return _pair(place, "first", "until the first instruction, CPU time", 0.3, ours, _executed(machines.peer(image)))


def boot(place: Place) -> str:
    """``run --runtime vm`` of ``true``, its root shared by virtio-fs, against QEMU's boot to the end of such a program.

    QEMU has no root but its initramfs, and no file server: what ours does more stays in our figure.
    """
    initial = machines.initramfs(place.path)
    root = f"{place.path}/rootfs"
    images.add_busybox(root)
    ours = command(*_ours(place, "run", "--rm"), *_vm(root), "true")
    words = machines.peer(machines.stock().image, machines.line(), initial)
    return _pair(place, "boot", "run of true, cold", 1.0, ours, _timed(words))


def exits(place: Place) -> str:
    """Exits of one boot to the end of a program: those that the kernel served, and those that reached Python."""
    with open(machines.initramfs(place.path), "rb") as file:
        initial = file.read()
    made, run = machines.board(machines.stock().image, initial, machines.line())
    try:
        before = made.machine.executor.counts()
        run()
        after = made.machine.executor.counts()
        python = sum(sum(counts.values()) for counts in made.machine.exits)
        kernel = after.get("exits", 0) - before.get("exits", 0)
        faults = after.get("pf_taken", 0) - before.get("pf_taken", 0)
        return f"exits    one boot: {python} reached Python, of {kernel} in all, {faults} of them for memory"
    finally:
        made.close()


def reads(place: Place) -> str:
    """Exits while a guest reads a file's content through pmem, and through a disk; scaled to a GiB."""
    path = f"{place.path}/content"
    with open(path, "wb") as file:
        file.write(os.urandom(1 << 20) * (READ >> 20))

    def plug(board: Board) -> None:
        board.pmem(os.open(path, os.O_RDONLY | os.O_CLOEXEC), READ)
        board.add("disk", Block(open_disk(path, "raw", writable=False), name="disk", serial="bench"))

    script = "mkdir -p /dev /sys; mount -t devtmpfs d /dev; mount -t sysfs s /sys\necho mark0 >/dev/console\n"
    for number, name in enumerate(("pmem0", "vda"), 1):
        script += f"while [ ! -b /dev/{name} ]; do usleep 10000; done\n"
        script += f"dd if=/dev/{name} of=/dev/null bs=1M 2>/dev/null\necho mark{number} >/dev/console\nsleep 1\n"
    guest = machines.Shell(script, ("virtio_blk", "nd_e820", "nd_pmem"), plug)
    try:
        guest.start()
        marks = [guest.until(f"mark{number}") for number in range(3)]
    finally:
        guest.board.close()
    scale = (1 << 30) / READ
    cells = []
    for name, before, after in zip(("pmem", "disk"), marks, marks[1:], strict=True):
        python, kernel = ((late - early) * scale for early, late in zip(before, after, strict=True))
        cells.append(f"{name} {python:.0f} to Python, {kernel:.0f} in all")
    return f"reads    exits for 1 GiB, from {READ >> 20} MiB: {'; '.join(cells)} (the console's own among them)"


def quiet(place: Place) -> str:
    """Exits that reach Python of a guest that sleeps, and of one that computes."""
    script = "echo mark0 >/dev/console\nsleep 1000 &\nwait\n"
    cells = []
    for name, text, most in (("idle", script, 5), ("busy", "echo mark0 >/dev/console\nwhile :; do :; done\n", 10)):
        mounted = f"mkdir -p /dev; mount -t devtmpfs d /dev\n{text}"
        guest = machines.Shell(mounted, ("virtio_rng",), lambda board: board.add("rng", Rng()))
        try:
            guest.start()
            guest.until("mark0")
            time.sleep(2)
            before = guest.count()
            time.sleep(WATCHED)
            python, kernel = ((late - early) / WATCHED for early, late in zip(before, guest.count(), strict=True))
        finally:
            guest.board.close()
        cells.append(f"{name} {python:.1f}/s of {kernel:.0f}/s (at most {most}: {_verdict(python <= most)})")
    return f"quiet    exits that reach Python: {'; '.join(cells)}"


def memory(place: Place) -> str:
    """What a machine keeps resident beside its guest's memory: the monitor; its file server apart; QEMU."""
    root = f"{place.path}/rootfs"
    images.add_busybox(root)
    started = subprocess.run(
        [*_ours(place, "run", "-d"), *_vm(root), "sleep", "1000"], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        time.sleep(3)
        own = sum(map(_beside, _called("mamushka-vm")))
        server = sum(map(_beside, _called("virtiofsd")))
    finally:
        subprocess.run(_ours(place, "rm", "-f", started), check=False, capture_output=True)
    cells = [f"mamushka {own >> 10} KiB, virtiofsd {server >> 10} KiB"]
    words = machines.peer(machines.stock().image, machines.line().replace(b"panic=-1", b"panic=0"))
    if words:
        machine = subprocess.Popen(words)  # its kernel finds no root, and stops there
        try:
            time.sleep(10)
            theirs = _beside(machine.pid)
        finally:
            machine.kill()
            machine.wait()
        cells.append(f"QEMU {theirs >> 10} KiB: {own / theirs:.2f}x, budget 0.5x: {_verdict(own <= theirs / 2)}")
    return f"memory   beside the guest's memory, PSS: {'; '.join(cells)}"


def clone(place: Place) -> str:
    """A copy of a live machine of 64 MiB, from the snapshot to its first exit."""
    size = 64 << 20
    memory = Memory((shared_region(0, size),))
    memory.write(0x1000, b"\x66\xba\x00\x06\xee\xeb\xf9")  # mov dx, 0x600; out dx, al; again
    parent = Machine(KvmExecutor(), memory)
    parent.start(Entry("protected", {"rip": 0x1000, "rsp": 0x8000}), held=True)
    saved, frozen = state.capture(parent, {}), state.freeze(parent)
    taken = []
    for _ in range(max(50, place.rounds)):
        begin = time.perf_counter()
        child = Machine(KvmExecutor(), state.private_memory(saved, frozen.fd))
        state.reinstate(child, {}, saved)
        child.vcpus[0].run()
        taken.append(time.perf_counter() - begin)
        child.close()
    parent.close()
    frozen.close()
    median, best = statistics.median(taken), min(taken)
    said = f"{median * 1000:.2f} ms (the quickest {best * 1000:.2f})"
    return f"clone    64 MiB to its first exit: {said}, at most 2 ms: {_verdict(median <= 0.002)}"


def fork(place: Place) -> str:
    """What a live machine that uses all of its memory stands still for, and stands still for again."""
    cells, took = [], {}
    for size in (64 << 20, 1 << 30):
        first, later = zip(*(_frozen_twice(size) for _ in range(max(3, place.rounds // 3))), strict=True)
        took[size] = statistics.median(first)
        again = statistics.median(later) * 1000
        cells.append(f"{size >> 20} MiB {took[size] * 1000:.2f} ms, again with 4 MiB changed {again:.2f} ms")
    kept = took[1 << 30] < took[64 << 20] + 0.005
    return f"fork     the parent's pause, CPU time: {'; '.join(cells)}; independent of the size: {_verdict(kept)}"


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


def _ours(place: Place, *words: str) -> list[str]:
    program = os.path.join(os.path.dirname(sys.executable), "mamushka")
    return [program, "--data-root", f"{place.path}/data", "--run-root", f"{place.path}/run", *words]


def _vm(root: str) -> list[str]:
    kernel = os.path.dirname(os.path.dirname(machines.stock().image))
    return ["--cold", "--runtime", "vm", "--network", "none", "--kernel", kernel, "--rootfs", root]


def _timed(words: list[str]) -> Contestant | None:
    return command(shutil.which(words[0]) or words[0], *words[1:]) if words else None


def _executed(words: list[str]) -> Contestant | None:
    return (lambda: machines.executed(words)) if words else None


def _pair(place: Place, name: str, what: str, budget: float, ours: Contestant, theirs: Contestant | None) -> str:
    contestants = {"mamushka": ours, **({"QEMU": theirs} if theirs is not None else {})}
    samples = alternate(contestants, place.rounds)
    row = Row(name, what, "s", budget, "each", samples)
    cells = [f"{who} {statistics.median(found) * 1000:.1f} ms" for who, found in samples.items()]
    ratio = "".join(f"{number:.2f}x, budget {budget:g}x: " for number in row.ratios().values())
    verdict = "no QEMU here" if row.kept is None else _verdict(row.kept)
    return f"{name:8} {what}: {', '.join(cells)}: {ratio}{verdict} (medians of {place.rounds})"


def _verdict(kept: bool) -> str:
    return "kept" if kept else "BROKEN"


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


def _beside(pid: int) -> int:
    """Bytes (PSS) of all mappings but those that are as large as a guest's memory."""
    with open(f"/proc/{pid}/smaps", "rb") as file:
        lines = file.readlines()
    heads = [line.split(b" ")[0].split(b"-") for line in lines if not line.split(b" ")[0].endswith(b":")]
    ranges = [(int(first, 16), int(last, 16)) for first, last in heads]
    return memory_use(lines, [item for item in ranges if item[1] - item[0] >= machines.MEMORY]).monitor_pss


ROWS: dict[str, Callable[[Place], str]] = {
    "clone": clone,
    "fork": fork,
    "first": first,
    "boot": boot,
    "exits": exits,
    "reads": reads,
    "quiet": quiet,
    "memory": memory,
}
# Of the rows, those whose guests are a few instructions: every KVM can run them.
_SMALL = ("clone", "fork")


def main() -> int:
    """Print the rows; 1 when a promise is broken, 2 when a row could not be run."""
    parser = argparse.ArgumentParser(prog="python -m bench.kvm", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", choices=[[], *ROWS], help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=10, help="turns of each contestant (default 10)")
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
                said = ROWS[name](Place(path, given.rounds))
            except Exception as error:
                print(f"{name:8} failed: {type(error).__name__}: {error}", file=sys.stderr)
                status = 2
                continue
            print(said, flush=True)
            status = status or int("BROKEN" in said)
    return status


if __name__ == "__main__":
    sys.exit(main())
