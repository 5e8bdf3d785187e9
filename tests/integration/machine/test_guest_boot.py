"""The guest's first process as just that: booted by a distribution's kernel, called over vsock. In the lab."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mamushka.machine.agent import Agent, SocketConnection, settings, words
from mamushka.machine.agent.program import guest_program
from mamushka.machine.boot.initramfs import Member, archive, program
from mamushka.machine.loop import Loop
from mamushka.spec.runtime import Config, Mount, Process
from tests import peers
from tests.lab.kernel import default_cache

pytestmark = [pytest.mark.lab, pytest.mark.slow]

MODULES = (
    "virtio", "virtio_ring", "virtio_mmio", "vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport",
)  # fmt: skip
WORDS = "console=ttyS0 quiet panic=-1 reboot=t mitigations=off"
MOUNTS = (
    Mount("/proc", "proc", "proc"),
    Mount("/dev", "tmpfs", "tmpfs", ("mode=755",)),
    Mount("/sys/fs/cgroup", "cgroup", "cgroup", ("ro",)),
)


def initramfs(kernel: Path) -> bytes:
    """The agent, and the modules it inserts."""
    members = [program("init", Path(guest_program(os.uname().machine)).read_bytes())]
    for name in MODULES:
        content = next((kernel / "lib").rglob(f"{name}.ko")).read_bytes()
        members.append(Member(f"modules/{name}.ko", content=content))
    members.append(Member("modules/order", content="".join(f"{name}.ko\n" for name in (*MODULES, "none")).encode()))
    return archive(members)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Agent]:
    """A stock kernel in QEMU with the agent as its first process, which has called."""
    peers.need_root()
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("qemu-system-x86_64 is missing: apt-get install qemu-system-x86")
    subprocess.run(["modprobe", "vhost_vsock"], capture_output=True, check=False)
    if not os.path.exists("/dev/vhost-vsock"):
        pytest.skip("/dev/vhost-vsock is missing: make lab has it")
    subprocess.run(["modprobe", "kvm-amd"], capture_output=True, check=False)
    kernel = Path(default_cache()) / "kernel"
    (tmp_path / "initramfs").write_bytes(initramfs(kernel))
    faults: list[BaseException] = []
    loop = Loop("devices", faults.append)
    agent = Agent(loop, faults.append)
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, words.HOST_PORT))
    listener.listen(64)
    loop.watch(listener.fileno(), lambda _: agent.channel.accept(SocketConnection(loop, listener.accept()[0])))
    loop.start()
    console = tmp_path / "console"
    command = [
        "qemu-system-x86_64", "-M", "microvm", "-global", "virtio-mmio.force-legacy=false", "-accel", "kvm",
        "-cpu", "host", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-serial", f"file:{console}",
        "-kernel", str(next((kernel / "boot").glob("vmlinuz-*"))), "-initrd", str(tmp_path / "initramfs"),
        "-append", WORDS, "-device", "vhost-vsock-device,guest-cid=42",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        agent.wait(60)
        yield agent
        process.wait(60)
    finally:
        process.kill()
        print(console.read_text(errors="replace"))
        agent.close()
        loop.stop()
        listener.close()
        loop.close()
    assert not faults


def test_a_stock_kernel_runs_it_and_a_container_in_it(guest: Agent) -> None:
    hello = guest.hello
    assert hello is not None
    assert hello.features == words.FEATURE_CGROUPS | words.FEATURE_VSOCK
    busybox = Path(peers.find("busybox")).read_bytes()
    guest.steps([
        settings.step(words.MKDIR, "/run/root/bin"),
        settings.file("/run/root/bin/busybox", busybox, 0o755),
        *(settings.step(words.SYMLINK, f"/run/root/bin/{name}", settings.text(words.K_SOURCE, "busybox"))
          for name in ("sh", "cat", "ps", "ls", "id", "mount", "sleep", "hostname", "wc", "dd", "grep")),
    ])  # fmt: skip
    guest.network([settings.link(name="lo", addresses=[(bytes([10, 9, 8, 7]), 24)])])
    config = Config("1.0.0", mounts=MOUNTS, hostname="inside")
    script = "id; hostname; ps; mount; ls /; cat /proc/net/fib_trie; dd if=/dev/zero bs=65536 count=100 | wc -c; exit 7"

    def run(name: int, script: str) -> tuple[object, str]:
        out = os.memfd_create("out")
        process = Process(args=("/bin/sh", "-c", script), env=("PATH=/bin",))
        ended = guest.create(
            name, settings.process_settings(process), "/run/root", settings.container_steps(config, {}),
            stdio=(-1, out, out),
        )  # fmt: skip
        guest.update(name, {"memory.max": str(32 << 20), "memory.swap.max": "0"})
        guest.start(name)
        exit = ended.result(60)
        counted = guest.read(["memory.peak", "cpu.stat", "pids.current"], name)
        assert {"cpu.stat", "pids.current"} <= counted.keys()
        guest.delete(name)
        text = os.pread(out, 1 << 20, 0).decode()
        print(text)
        return exit, text

    exit, said = run(1, script)
    assert exit.status == 7  # type: ignore[attr-defined]
    assert "uid=0" in said
    assert "inside" in said
    assert "6553600" in said
    assert "10.9.8.7" in said
    assert "init" not in [line.split()[-1] for line in said.splitlines()]
    exit, said = run(2, "x=$(dd if=/dev/zero bs=1048576 count=200 | cat -v); echo no")
    assert exit.oom_killed  # type: ignore[attr-defined]
    assert "no" not in said
    guest.renew(os.urandom(64), 1_900_000_000_000_000_000)
    assert guest.read(["/proc/uptime"])["/proc/uptime"]
    guest.sync()
    guest.power_off()
