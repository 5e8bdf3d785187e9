"""``mamushka machine`` on whole Linux: a disk at the command line, a debugger and figures of a workload's machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mamushka.machine.boot import initramfs
from mamushka.machine.boot.initramfs import Member, program
from mamushka.machine.boot.modules import Modules, module_name
from tests import peers
from tests.integration.machine.linux_guest import KERNEL, need_machines
from tests.lab.kernel import Kernel, Unavailable, default_cache, kernel

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]
pytestmark = [pytest.mark.lab, pytest.mark.root, pytest.mark.slow]
BIN = os.path.dirname(sys.executable)


@pytest.fixture
def stock() -> Kernel:
    need_machines()
    peers.need("busybox")
    try:
        return kernel(default_cache())
    except Unavailable as error:
        pytest.skip(str(error))


def test_a_stock_kernel_with_a_disk(stock: Kernel, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "32M"], check=True)
    files = Modules(stock.modules)
    order = files.order(("virtio_mmio", "virtio_blk"))
    insert = "".join(f"insmod /modules/{module_name(path)}.ko\n" for path in order)
    script = (
        "#!/bin/busybox sh\nexport PATH=/bin\n/bin/busybox --install -s /bin\nmkdir -p /proc /dev\n"
        f"mount -t devtmpfs d /dev\n{insert}echo written | dd of=/dev/vda conv=fsync 2>/dev/null\n"
        "echo say something\nread word; echo it said $word\npoweroff -f\n"
    )
    first, second = tmp_path / "first", tmp_path / "second"
    busybox = program("bin/busybox", Path(peers.find("busybox")).read_bytes())
    first.write_bytes(initramfs.archive([busybox, program("init", script.encode())]))
    second.write_bytes(
        initramfs.archive(Member(f"modules/{module_name(path)}.ko", content=files.read(path)) for path in order)
    )
    words = ["--kernel", stock.image, "--initramfs", str(first), "--initramfs", str(second), "-m", "256m"]
    ran = subprocess.Popen(
        [f"{BIN}/mamushka", "machine", "run", *words, "--disk", f"{disk},format=qcow2", "--append", "quiet"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert ran.stdin is not None and ran.stdout is not None
    said = b""
    try:
        # A driver empties the port's queue when it begins: what was typed before is lost, as on any serial line.
        while b"say something" not in said and (line := ran.stdout.readline()):
            said += line
        ran.stdin.write(b"hello\n")
        ran.stdin.flush()
        more, errors = ran.communicate(timeout=200)
    finally:
        ran.kill()
    assert ran.returncode == 0 and b"it said hello" in more, (said[-2000:], more, errors)
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(disk), str(raw)], check=True)
    subprocess.run(["qemu-img", "check", "-q", str(disk)], check=True)
    assert raw.read_bytes()[:8] == b"written\n"


@pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb")
def test_a_debugger_and_figures_of_a_workload(
    stock: Kernel, mamushka: Command, roots: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = mamushka("run", "-d", "--name", "box", "--network", "none", "--runtime", "vm", "--kernel", KERNEL, "host",
                    "sh", "-c", "while :; do sleep 0.1; done")  # fmt: skip
    assert made.returncode == 0, made.stderr
    try:
        command = f"{BIN}/mamushka --data-root {roots[0]} --run-root {roots[1]} machine gdb box"
        said = debug(f"| {command}")
        assert re.search(r"at ffffffff\w+", said) and "virtual CPU 0" in said and "detached" in said, said
        assert mamushka("exec", "box", "echo", "on").stdout == b"on\n", "it goes on"
        listening(command, roots)
        figures(mamushka)
        assert mamushka("exec", "box", "echo", "on").stdout == b"on\n"
        refused = mamushka("machine", "gdb", "none")
        assert refused.returncode == 126
    finally:
        mamushka("rm", "-f", "box")


def debug(where: str) -> str:
    words = ["set confirm off", "set remotetimeout 60", f"target remote {where}", 'printf "at %lx\\n", $rip']
    words += ["info threads", "stepi", "detach"]
    given = [item for word in words for item in ("-ex", word)]
    ran = subprocess.run(["gdb", "-nx", "-batch", *given], capture_output=True, text=True, timeout=120, check=False)
    return ran.stdout + ran.stderr


def listening(command: str, roots: tuple[str, str]) -> None:
    path = f"{roots[1]}/debugger"
    with subprocess.Popen([*command.split(), "--listen", path], stderr=subprocess.PIPE) as waiting:
        end = time.monotonic() + 30
        while not os.path.exists(path) and time.monotonic() < end:
            time.sleep(0.1)
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert "detached" in debug(path)
        waiting.send_signal(2)
        assert waiting.wait(20) == 0
    assert not os.path.exists(path)


def figures(mamushka: Command) -> None:
    row = json.loads(mamushka("stats", "--no-stream", "--format", "json", "box").stdout)
    machine = row["Machine"]
    assert machine["Exits"] > 0 and 0 <= machine["UserShare"] <= 1
    assert 0 < machine["GuestPrivate"] < 1 << 30 and machine["MonitorPss"] > 1 << 20
    table = mamushka("stats", "--no-stream", "box").stdout.decode()
    assert "EXITS/S" in table.splitlines()[0] and "PRIVATE MEM" in table.splitlines()[0]
    whole = mamushka("machine", "stats", "box").stdout.decode()
    assert re.search(r"^exits/s +\d", whole, re.M) and "private memory" in whole, whole
