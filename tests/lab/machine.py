"""A machine around a command: QEMU, the host's files, and the end as it is told on the console."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator

from tests.lab import initramfs
from tests.lab.kernel import default_cache, kernel

_VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
_MEMORY = "3G"
_DISK = 4 << 30  # sparse
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def missing() -> str:
    """What the lab lacks on this host, as a sentence; empty when it can be entered."""
    if os.uname().machine != "x86_64":
        return "the lab's kernel is for x86_64"
    if os.geteuid() != 0:
        return "the lab needs root, to share the host's files"
    wanted = {
        "qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "depmod": "kmod",
        "mkfs.ext4": "e2fsprogs",
    }  # fmt: skip
    packages = [package for program, package in wanted.items() if shutil.which(program, path=_PATH) is None]
    packages += [] if any(map(os.path.exists, _VIRTIOFSD)) else ["qemu-system-common"]
    return f"the lab needs packages: apt-get install {' '.join(packages)}" if packages else ""


def run(command: str, *, directory: str, environment: dict[str, str], timeout: float, quiet: bool = False) -> int:
    """Perform a shell's command in the machine; its exit status. RuntimeError when the machine ends without one."""
    found = kernel(default_cache())
    busybox = shutil.which("busybox") or "busybox"
    with tempfile.TemporaryDirectory(prefix="lab") as scratch, _shared(scratch) as socket:
        with open(f"{scratch}/initramfs", "wb") as file:
            file.write(initramfs.archive(busybox, found, command, directory, environment))
        disk = f"{scratch}/disk"
        with open(disk, "wb") as file:
            file.truncate(_DISK)
        subprocess.run(["mkfs.ext4", "-q", "-F", disk], check=True, env={"PATH": _PATH})
        return _watch(_qemu(found.image, f"{scratch}/initramfs", socket, disk), timeout, quiet=quiet)


@contextlib.contextmanager
def _shared(scratch: str) -> Iterator[str]:
    """A virtiofsd that shares the host's root; it ends with the machine, its one client."""
    socket = f"{scratch}/root"
    program = next(path for path in _VIRTIOFSD if os.path.exists(path))
    words = [program, f"--socket-path={socket}", "-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot"]
    with open(f"{scratch}/virtiofsd.log", "wb") as log:
        daemon = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 10
        while not os.path.exists(socket):
            if daemon.poll() is not None or time.monotonic() > deadline:
                with open(f"{scratch}/virtiofsd.log") as file:
                    raise RuntimeError(f"the host's files cannot be shared: {file.read()[-500:]}")
            time.sleep(0.02)
        yield socket
    finally:
        daemon.terminate()
        daemon.wait(10)


def _qemu(image: str, initial: str, socket: str, disk: str) -> list[str]:
    return [
        "qemu-system-x86_64", "-M", "q35,memory-backend=m", "-accel", "tcg,thread=multi", "-cpu", "max,+svm,+npt",
        "-smp", "2", "-m", _MEMORY, "-object", f"memory-backend-memfd,id=m,size={_MEMORY},share=on",
        "-chardev", f"socket,id=fs,path={socket}", "-device", "vhost-user-fs-pci,chardev=fs,tag=root",
        "-drive", f"file={disk},if=virtio,format=raw,cache=unsafe",
        "-kernel", image, "-initrd", initial,
        "-append", "console=ttyS0 loglevel=2 panic=-1 lsm=landlock,yama,apparmor,bpf",
        "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
    ]  # fmt: skip


def _watch(words: list[str], timeout: float, *, quiet: bool) -> int:
    """Show what the console says; the exit status that it ends with."""
    machine = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert machine.stdout is not None
    status: int | None = None
    rest = ""
    deadline = time.monotonic() + timeout
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(machine.stdout, selectors.EVENT_READ)
            while status is None:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise RuntimeError(f"the machine did not end within {timeout:.0f} s")
                raw = os.read(machine.stdout.fileno(), 65536)
                if not raw:
                    break
                *lines, rest = (rest + raw.decode(errors="replace").replace("\r", "")).split("\n")
                for line in lines:
                    if initramfs.EXIT in line:  # perhaps behind words of the kernel
                        status = int(line.partition(initramfs.EXIT)[2].split()[0])
                    elif not quiet:
                        print(line, flush=True)
    finally:
        if machine.poll() is None and status is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                machine.wait(10)
        machine.kill()
        machine.wait()
    if status is None:
        raise RuntimeError("the machine ended without telling how its command ended: see the console above")
    return status
