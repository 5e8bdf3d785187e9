"""``mamushka machine run``: multiboot programs on any KVM, beside QEMU; a stock kernel with a disk in the lab."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from mamushka.machine.executors.kvm.probe import probe
from mamushka.storage.qcow2.create import create_qcow2
from tests.integration.machine.guests import needs_kvm
from tests.integration.machine.test_bare import program

pytestmark = needs_kvm

BIN = os.path.dirname(sys.executable)
RUN = [f"{BIN}/mamushka", "machine", "run", "-m", "16m"]
HEADER = ".long 0x1badb002, 3, -(0x1badb002 + 3)\n.global start\n"

# Tells its command line behind the first word on the serial port, then echoes what comes there until a "q", and leaves
# with 0x15.
ECHO = f"""{HEADER}
start:
    mov esp, offset stack
    mov ebx, [ebx + 16]
    mov dx, 0x3f8
argument:
    mov al, [ebx]
    inc ebx
    cmp al, 0x20
    jne argument
letter:
    mov al, [ebx]
    inc ebx
    test al, al
    jz input
    out dx, al
    jmp letter
input:
    mov dx, 0x3fd
    in al, dx
    test al, 1
    jz input
    mov dx, 0x3f8
    in al, dx
    out dx, al
    cmp al, 'q'
    jne input
    mov eax, 0x15
    out 0xf4, eax
    hlt
    .bss
    .space 4096
stack: .long 0
"""
# An interrupt table without a byte, and an instruction that is none.
TRIPLE = f"{HEADER}\nstart: lidt [none]\nud2\nhlt\n.data\nnone: .long 0, 0\n"
# ACPI's sleep register, as devices/power has it.
OFF = f"{HEADER}\nstart: mov dx, 0x600\nmov al, 0x34\nout dx, al\nhlt\n"
# Writes its 2 KiB of the letter a without looking whether anybody takes them, then ends.
LONG = f"""{HEADER}
start:
    mov ecx, 2048
    mov al, 'a'
    mov dx, 0x3f8
next:
    out dx, al
    dec ecx
    jnz next
    xor eax, eax
    out 0xf4, eax
    hlt
"""
# The first processor copies real-mode code to 0x8000, wakes the second by INIT and SIPI, waits for its mark and leaves
# with 7. Each says its number. Then fw_cfg's count of processors, as a digit.
SMP = f"""{HEADER}
start:
    mov esp, offset stack
    mov esi, offset code
    mov edi, 0x8000
    mov ecx, 64
    rep movsb
    mov byte ptr [0x9000], 0
    mov dword ptr [0xfee000f0], 0x1ff
    mov dword ptr [0xfee00310], 0x01000000
    mov dword ptr [0xfee00300], 0x4500
    mov ecx, 2000
pause1: in al, 0x80
    loop pause1
    mov dword ptr [0xfee00310], 0x01000000
    mov dword ptr [0xfee00300], 0x4608
wake: pause
    cmp byte ptr [0x9000], 1
    jne wake
    mov dx, 0x3f8
    mov al, 0x31
    out dx, al
    mov dx, 0x510
    mov ax, 5
    out dx, ax
    inc dx
    in al, dx
    add al, 0x30
    mov dx, 0x3f8
    out dx, al
    mov eax, 7
    out 0xf4, eax
    hlt
code:
    .code16
    mov dx, 0x3f8
    mov al, 0x32
    out dx, al
    mov ax, 0x900
    mov ds, ax
    mov byte ptr [0], 1
    cli
    hlt
    .space 64
    .code32
    .bss
    .space 4096
stack: .long 0
"""
COUNTING = f"{HEADER}\nstart: xor ebx, ebx\nagain: inc ebx\nmov [0x200000], ebx\njmp again\n"


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    (tmp_path / "echo").write_bytes(program(ECHO))
    return tmp_path / "echo"


def run(path: Path, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*RUN, "--kernel", str(path), *words], input=given, capture_output=True, timeout=60, check=False
    )


def made(tmp_path: Path, source: str) -> Path:
    (tmp_path / "program").write_bytes(program(source))
    return tmp_path / "program"


def test_pipes_and_a_status(kernel: Path) -> None:
    done = run(kernel, "--append", "one two=3", given=b"abcq rest")
    assert done.stdout == b"one two=3abcq", done.stderr
    assert done.returncode == 0x15 * 2 + 1


def test_disks_that_no_driver_looks_at(kernel: Path, tmp_path: Path) -> None:
    raw, written = tmp_path / "raw", tmp_path / "qcow2"
    raw.write_bytes(bytes(1 << 20))
    create_qcow2(str(written), 1 << 20)
    done = run(
        kernel, "--append", "x", "--disk", f"{raw}:ro", "--disk", f"{written},format=qcow2", "--cpus", "2", given=b"q"
    )
    assert (done.stdout, done.stderr, done.returncode) == (b"xq", b"", 43)


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86")
@pytest.mark.parametrize("source", [ECHO, SMP, LONG], ids=["echo", "smp", "long"])
def test_serial_output_and_status_are_qemus(tmp_path: Path, source: str) -> None:
    kernel = made(tmp_path, source)
    qemu = subprocess.run(
        ["qemu-system-x86_64", "-accel", "tcg", "-m", "16", "-smp", "2", "-nodefaults", "-display", "none",
         "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", str(kernel),
         "-append", "one two=3"],
        input=b"abcq", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    ours = run(kernel, "--append", "one two=3", "--cpus", "2", given=b"abcq")
    assert (ours.stdout, ours.returncode) == (qemu.stdout, qemu.returncode), ours.stderr
    assert qemu.stdout


def test_off_is_zero_and_a_triple_fault_is_named(tmp_path: Path) -> None:
    assert run(made(tmp_path, OFF)).returncode == 0
    broken = run(made(tmp_path, TRIPLE))
    assert broken.returncode == 126 and b"triple fault" in broken.stderr


def test_the_last_words_are_all_there(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with subprocess.Popen(
        [*RUN, "--kernel", str(made(tmp_path, LONG))], stdin=subprocess.DEVNULL, stdout=writer
    ) as ours:
        os.close(writer)
        time.sleep(1)  # it has ended by then, and nobody has read yet
        with open(reader, "rb") as file:
            assert file.read() == b"a" * 2048
        assert ours.wait(20) == 1


def test_no_serial_port(kernel: Path) -> None:
    # Where nobody answers, all bits are set: the program reads its own end out of them, one letter at a time.
    with subprocess.Popen([*RUN, "--kernel", str(kernel), "--no-serial"], stdout=subprocess.PIPE) as ours:
        time.sleep(1)
        ours.send_signal(signal.SIGTERM)
        assert ours.communicate(timeout=20)[0] == b""
        assert ours.returncode == 128 + signal.SIGTERM


def test_what_is_wrong_is_said(kernel: Path, tmp_path: Path) -> None:
    for words, said in (
        (("-m", "1m"), b"2 MiB"), (("--cpus", "0"), b"1 to 128"), (("--disk", "/no/such"), b"/no/such"),
        (("--net", "bridge"), b"tap:NAME"), (("--initramfs", "/no/such"), b"/no/such"),
        (("--disk", "a,format=vhd"), b"vhd"), (("--executor", "none"), b"kvm"),
    ):  # fmt: skip
        done = run(kernel, *words)
        assert done.returncode in (125, 126) and said in done.stderr, (words, done.stderr)
    assert b"--kernel" in subprocess.run(RUN, capture_output=True, check=False).stderr
    assert b"no kernel" in run(tmp_path / "none").stderr


class Seat:
    """The command at a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self.master, self.terminal = pty.openpty()
        self.before = termios.tcgetattr(self.terminal)
        self.process = subprocess.Popen(
            [*RUN, *words], stdin=self.terminal, stdout=self.terminal, stderr=self.terminal, start_new_session=True
        )

    def until(self, text: bytes) -> bytes:
        said = b""
        end = time.monotonic() + 30
        while text not in said and time.monotonic() < end:
            if select.select([self.master], [], [], 0.2)[0]:
                said += os.read(self.master, 4096)
        assert text in said, said
        return said

    def restored(self) -> bool:
        end = time.monotonic() + 10
        while termios.tcgetattr(self.terminal) != self.before and time.monotonic() < end:
            time.sleep(0.02)
        return termios.tcgetattr(self.terminal) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.terminal)


def test_a_terminal_gives_every_key_and_two_end_it(kernel: Path) -> None:
    seat = Seat("--kernel", str(kernel), "--append", "ready")
    try:
        seat.until(b"ready")
        os.write(seat.master, b"a\x03\x01b")  # neither ctrl-c nor a lone ctrl-a means anything here
        seat.until(b"a\x03\x01b")
        os.write(seat.master, b"\x01x")
        assert seat.process.wait(20) == 0
        assert seat.restored()
    finally:
        seat.close()


def test_whoever_is_killed_gets_his_terminal_back(kernel: Path) -> None:
    seat = Seat("--kernel", str(kernel), "--append", "ready")
    try:
        seat.until(b"ready")
        os.write(seat.master, b"a")
        seat.until(b"a")
        assert termios.tcgetattr(seat.terminal) != seat.before
        seat.process.kill()
        assert seat.restored()
    finally:
        seat.close()


def test_it_is_behind_the_cage(kernel: Path) -> None:
    seat = Seat("--kernel", str(kernel), "--append", "ready")
    try:
        seat.until(b"ready")
        children = Path(f"/proc/{seat.process.pid}/task/{seat.process.pid}/children").read_text().split()
        assert len(children) == 1
        threads = list(Path(f"/proc/{children[0]}/task").iterdir())
        assert len(threads) >= 3  # a virtual CPU, devices, control; some kernels have one more of their own
        for thread in threads:
            state = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines() if ":\t" in line)
            assert (state["Seccomp"], state["NoNewPrivs"], state["CapBnd"]) == ("2", "1", "0" * 16)
        assert os.listdir(f"/proc/{children[0]}/root") == []
    finally:
        seat.close()


@pytest.mark.skipif(probe().usable, reason="this KVM runs stock kernels")
def test_a_stock_kernel_is_refused_with_the_reason() -> None:
    from tests.lab.kernel import Unavailable, default_cache
    from tests.lab.kernel import kernel as stock

    try:
        image = stock(default_cache()).image
    except Unavailable as error:
        pytest.skip(str(error))
    done = run(Path(image))
    assert done.returncode == 126 and b"operating system's kernel" in done.stderr and b"--force" in done.stderr


@pytest.mark.parametrize(
    ("content", "said"), [(b"root:x:0:0", b"its format is not known"), (b"", b"is empty"), (b"\x7fELF", b"ELF")]
)
def test_what_is_no_kernel_is_told_so_on_every_host(tmp_path: Path, content: bytes, said: bytes) -> None:
    (tmp_path / "junk").write_bytes(content)
    done = run(tmp_path / "junk")
    assert done.returncode == 126 and said in done.stderr and b"operating system's kernel" not in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb")
def test_a_debugger_is_waited_for(tmp_path: Path) -> None:
    where = tmp_path / "gdb"
    with subprocess.Popen([*RUN, "--kernel", str(made(tmp_path, COUNTING)), "--gdb", str(where)]) as ours:
        try:
            end = time.monotonic() + 20
            while not where.exists() and time.monotonic() < end:
                time.sleep(0.05)
            head = ["gdb", "-nx", "-batch", "-ex", "set confirm off", "-ex", f"target remote {where}"]
            words = ["stepi", "stepi", 'printf "rbx %d\\n", (int)$rbx', "kill"]
            said = subprocess.run(
                [*head, *(item for word in words for item in ("-ex", word))],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert "rbx 1" in said.stdout, said
            assert ours.wait(20) == 0
            assert not where.exists()
        finally:
            ours.kill()
