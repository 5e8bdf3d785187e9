"""The real gdb against our machines: mini-guests here, a kernel in the lab."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from mamushka.machine.gdb import Server
from mamushka.machine.machine import OFF, RUNNING, Machine
from mamushka.machine.memory import Memory, Region
from tests.integration.machine.guests import START, assemble, emulated, in_hardware, machine, needs_kvm, protected
from tests.integration.machine.toy import ToyExecutor

pytestmark = [needs_kvm, pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb")]

# Counts in ebx and in memory, for ever.
COUNTING = """
    xor ebx, ebx
again:
    inc ebx
    mov [0x4000], ebx
    jmp again
"""
AGAIN, STORE, JUMP = START + 2, START + 3, START + 9


def gdb(where: object, *commands: str, timeout: float = 60) -> str:
    """What gdb says to these commands once it is connected."""
    words = [item for command in (f"target remote {where}", *commands) for item in ("-ex", command)]
    head = [
        "gdb",
        "-nx",
        "-batch",
        "-ex",
        "set confirm off",
        "-ex",
        "set pagination off",
        "-ex",
        "set remotetimeout 20",
    ]
    ran = subprocess.run([*head, *words], capture_output=True, text=True, timeout=timeout, check=False)
    return ran.stdout + ran.stderr


def moves(made: Machine) -> bool:
    """Whether the guest counts."""
    before = bytes(made.memory.read(0x4000, 4))
    end = time.monotonic() + 10
    while bytes(made.memory.read(0x4000, 4)) == before and time.monotonic() < end:
        time.sleep(0.01)
    return bytes(made.memory.read(0x4000, 4)) != before


def test_registers_memory_steps_and_detach(tmp_path: Path) -> None:
    with machine(assemble(COUNTING), interrupts=False) as made:
        made.start(protected(), held=True)
        with Server(made, unix=str(tmp_path / "gdb")):
            said = gdb(
                tmp_path / "gdb", "printf \"at %lx\\n\", $rip", "stepi", "printf \"at %lx\\n\", $rip",
                "stepi", "stepi", "printf \"ebx %d\\n\", (int)$rbx", "x/wx 0x4000",
                "set var $rbx = 41", "set {int}0x5000 = 0x1234", "x/wx 0x5000",
                "printf \"cs %x cr0 %x\\n\", $cs, $cr0 & 1",
                "info threads", "x/i $pc", "detach",
            )  # fmt: skip
            assert f"at {START:x}" in said and f"at {AGAIN:x}" in said, said
            assert "ebx 1" in said and re.search(r"0x4000:\s+0x00000001", said), said
            assert re.search(r"0x5000:\s+0x00001234", said) and "cs 10 cr0 1" in said, said
            assert "virtual CPU 0" in said and "jmp" in said and "detached" in said, said
            assert made.state == RUNNING and moves(made)
            assert int.from_bytes(made.memory.read(0x4000, 4), "little") >= 42


@pytest.mark.skipif(emulated(), reason="a nested guest's debug registers do nothing under QEMU's TCG")
def test_the_processors_breakpoints(tmp_path: Path) -> None:
    with machine(assemble(COUNTING), interrupts=False) as made:
        made.start(protected())
        assert moves(made)
        with Server(made) as server:
            said = gdb(
                f"127.0.0.1:{server.port}", f"hbreak *{JUMP:#x}", "continue",
                "printf \"one %lx %d\\n\", $rip, (int)$rbx",
                "continue", "printf \"two %lx %d\\n\", $rip, (int)$rbx", "delete", "printf \"done\\n\"",
            )  # fmt: skip
            one, two = (re.search(rf"{word} {JUMP:x} (\d+)", said) for word in ("one", "two"))
            assert one and two and int(two[1]) == int(one[1]) + 1, said
            assert moves(made), "a debugger that hangs up leaves it running"
            assert made.stopped is None


def test_an_interrupt_and_a_kill() -> None:
    with machine(assemble(COUNTING), interrupts=False) as made:
        made.start(protected())
        with Server(made) as server, socket.create_connection(("127.0.0.1", server.port), 10) as peer:
            file = peer.makefile("rb")

            def ask(text: bytes) -> bytes:
                peer.sendall(b"$" + text + b"#%02x" % (sum(text) & 0xFF))
                return answer()

            def answer() -> bytes:
                while (byte := file.read(1)) == b"+":
                    peer.sendall(b"+")
                assert byte == b"$"
                text = b""
                while (byte := file.read(1)) != b"#":
                    text += byte
                file.read(2)
                return text

            assert ask(b"?").startswith(b"T05thread:1")
            assert not moves_now(made)
            peer.sendall(b"+$c#63")
            assert moves(made)
            peer.sendall(b"\x03")
            assert answer().startswith(b"T02thread:1")
            assert not moves_now(made)
            assert ask(b"m0,4") and ask(b"mzz,4") == b"E01" and ask(b"nonsense") == b""
            peer.sendall(b"+$k#6b")
            end = made.wait(10)
            assert end is not None and end.cause == "ended by its debugger"


def moves_now(made: Machine) -> bool:
    before = bytes(made.memory.read(0x4000, 4))
    time.sleep(0.05)
    return bytes(made.memory.read(0x4000, 4)) != before


def test_a_machine_that_ends_under_its_debugger(tmp_path: Path) -> None:
    with machine(assemble("nop\n hlt"), interrupts=False) as made:
        made.start(protected(), held=True)
        with Server(made, unix=str(tmp_path / "gdb")):
            said = gdb(tmp_path / "gdb", "continue")
            assert "exited normally" in said, said
            end = made.wait(10)
            assert end is not None and end.kind == OFF
            assert "Remote" in gdb(tmp_path / "gdb", "info registers rip"), "there is nothing to debug"


def test_software_breakpoints_and_watchpoints(tmp_path: Path) -> None:
    in_hardware()
    with machine(assemble(COUNTING), interrupts=False) as made:
        made.start(protected(), held=True)
        code = bytes(made.memory.read(START, 16))
        with Server(made, unix=str(tmp_path / "gdb")):
            said = gdb(
                tmp_path / "gdb", f"break *{STORE:#x}", "continue", "printf \"one %d\\n\", (int)$rbx",
                f"x/6xb {STORE:#x}", "continue", "printf \"two %d\\n\", (int)$rbx", "delete",
                "watch *(int*)0x4000", "continue", "printf \"three %d %lx\\n\", (int)$rbx, $rip", "delete", "detach",
            )  # fmt: skip
            assert "one 1" in said and "two 2" in said and f"three 2 {JUMP:x}" in said, said
            assert re.search(r":\s+0x89\s+0x1d", said), said
            assert bytes(made.memory.read(START, 16)) == code and moves(made)


def test_several_virtual_cpus(tmp_path: Path) -> None:
    with machine(assemble(COUNTING), vcpus=2) as made:
        made.start(protected())
        assert moves(made)
        with Server(made, unix=str(tmp_path / "gdb")):
            said = gdb(tmp_path / "gdb", "info threads", "thread 2", 'printf "at %lx\\n", $rip', "thread 1", "stepi")
            assert "virtual CPU 1" in said and re.search(r"at fff0|at ffff\w*", said), said
        assert moves(made)


# By an executor that stops wherever it is asked to


def toy(memory: Memory, vcpus: int = 1) -> Machine:
    return Machine(ToyExecutor(memory), memory, vcpus=vcpus)  # type: ignore[arg-type]


# nop; nop; int3 (the guest's own); nop; jmp 0
LOOP = bytes((0x90, 0x90, 0xCC, 0x90, 0xEB, 0xFA))


def test_a_breakpoint_hides_itself_and_lets_the_guests_own_through(tmp_path: Path) -> None:
    memory = Memory((Region(0, 1 << 16),))
    memory.write(0x1000, LOOP)
    made = toy(memory, 2)
    for vcpu in made.vcpus:
        vcpu.set_registers({"rip": 0x1000})
    try:
        made.start(held=True)
        with Server(made, unix=str(tmp_path / "gdb")):
            said = gdb(
                tmp_path / "gdb", "break *0x1003", "continue", "printf \"one %lx %ld\\n\", $rip, $rcx", "x/6xb 0x1000",
                "continue", "printf \"two %lx\\n\", $rip", "set {char}0x1003 = 0x91", "x/6xb 0x1000",
                "set {char}0x1003 = 0x90", "info threads", "detach",
            )  # fmt: skip
        assert "one 1003 " in said and "two 1003" in said, said
        shown = [line.split()[-6:] for line in said.splitlines() if line.startswith("0x1000:")]
        assert [line[3] for line in shown] == ["0x90", "0x91"] and shown[0][2] == "0xcc", said
        assert bytes(memory.read(0x1000, 6)) == LOOP and made.state == RUNNING
        before = made.vcpus[0].registers()["rcx"]
        time.sleep(0.2)
        assert made.vcpus[0].registers()["rcx"] > before, "its own breakpoints are its own"
    finally:
        made.close()


def test_a_step_is_one_virtual_cpus_alone(tmp_path: Path) -> None:
    memory = Memory((Region(0, 1 << 16),))
    memory.write(0x1000, b"\x90" * 100 + b"\xeb\x9a")
    made = toy(memory, 2)
    for vcpu in made.vcpus:
        vcpu.set_registers({"rip": 0x1000})
    try:
        made.start(held=True)
        with Server(made, unix=str(tmp_path / "gdb")):
            said = gdb(
                tmp_path / "gdb", "set scheduler-locking on", "thread 2", "stepi", "stepi",
                "printf \"second %lx\\n\", $rip", "thread 1", "printf \"first %lx\\n\", $rip", "hbreak *0x1010",
                "set scheduler-locking off", "continue", "printf \"stopped %lx\\n\", $rip",
            )  # fmt: skip
        assert "second 1002" in said and "first 1000" in said and "stopped 1010" in said, said
    finally:
        made.close()


@pytest.mark.lab
@pytest.mark.skipif(not os.path.exists("/bin/busybox"), reason="needs busybox-static")
def test_a_kernel(tmp_path: Path) -> None:
    """Breakpoints in Debian's kernel, by the addresses that it tells itself; its own int3 are its own."""
    from tests.integration.machine.linux_guest import linux, usable

    if not usable():
        pytest.skip("no KVM here that runs a stock kernel: make lab")
    script = """
grep -e ' linux_banner$' -e ' __x64_sys_reboot$' /proc/kallsyms
echo it runs
sleep 30
"""
    with linux(script, words=["nokaslr"], vcpus=2) as guest:
        made = guest.board.machine
        guest.start()
        text = guest.until("it runs")
        places = (re.search(rf"(\w+) \w {name}", text) for name in ("linux_banner", "__x64_sys_reboot"))
        banner, reboot = (int(place[1], 16) if place else 0 for place in places)
        assert banner and reboot, text[-2000:]
        with Server(made, unix=str(tmp_path / "gdb")):
            said = gdb(
                tmp_path / "gdb", f"x/s {banner:#x}", "stepi", "stepi", "printf \"at %lx\\n\", $rip", "info threads",
                f"x/4xb {reboot:#x}", "printf \"cr3 %lx\\n\", $cr3", "detach", timeout=100,
            )  # fmt: skip
        assert "Linux version" in said and "virtual CPU 1" in said, said
        at, cr3 = re.search(r"at (ffffffff8\w+)", said), re.search(r"cr3 (\w+)", said)
        assert at and cr3 and int(cr3[1], 16), said
        if not emulated():
            made.hold()
            made.settle()
            with Server(made, unix=str(tmp_path / "gdb2")):
                said = gdb(tmp_path / "gdb2", f"break *{reboot:#x}", "continue", 'printf "reboot %lx\\n", $rip')
            assert f"reboot {reboot:x}" in said, said
        assert made.wait(120) is not None
