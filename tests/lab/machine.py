"""A machine around a command: QEMU, the host's files, and the end as it is told on the console."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping

from tests.lab import initramfs, systemd
from tests.lab.kernel import default_cache, kernel

_VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
_MEMORY = "3G"
_DISK = 32 << 30  # sparse; the long tests keep more than 4 GiB between them
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
# Without no_timer_check the kernel counts ticks against its own loop, and panics on a host that is busy.
_KERNEL = "console=ttyS0 loglevel=2 panic=-1 no_timer_check unknown_nmi_panic lsm=landlock,yama,apparmor,bpf"
# What a machine that stands still is asked, and for how long its kernel's last words are awaited.
_LOOK = ("info registers -a", "info lapic", "nmi")
_LAST_WORDS = 10.0


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
    packages += systemd.missing().split()
    return f"the lab needs packages: apt-get install {' '.join(packages)}" if packages else ""


class Console:
    """The machine's console: kept as it comes, shown unless ``quiet``, and searched for the command's end."""

    def __init__(self, path: str, *, quiet: bool) -> None:
        self.path, self.quiet = path, quiet
        self.status: int | None = None
        self._rest = ""
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115

    def feed(self, raw: bytes) -> None:
        """Some more of it, in whatever pieces."""
        *lines, self._rest = (self._rest + raw.decode(errors="replace").replace("\r", "")).split("\n")
        for line in lines:
            if initramfs.EXIT in line:  # perhaps behind words of the kernel
                self.status = int(line.partition(initramfs.EXIT)[2].split()[0])
                continue
            self._file.write(line + "\n")
            self._file.flush()
            if not self.quiet:
                print(line, flush=True)

    def close(self) -> None:
        """The machine has ended: keep the unfinished last line, too."""
        self._file.write(self._rest)
        self._file.close()


def run(
    command: str,
    *,
    directory: str,
    environment: Mapping[str, str],
    timeout: float,
    artefacts: str,
    as_unit: bool = False,
    quiet: bool = False,
    silence: float = float("inf"),
) -> int:
    """Perform a shell's command in the machine; its exit status. RuntimeError when the machine ends without one, or
    says nothing for ``silence`` seconds: emulators of emulated machines lose their clocks at times. What its processors
    did then is kept beside the console's log, which ends with what its kernel makes of an interrupt that it must hear.

    ``artefacts`` is a directory of the host's: it gets the console's log, and what the command writes to
    ``initramfs.ARTEFACTS``. With ``as_unit`` systemd is the first process, and the command a service of its.
    """
    found = kernel(default_cache())
    busybox = shutil.which("busybox") or "busybox"
    with tempfile.TemporaryDirectory(prefix="lab") as scratch, contextlib.ExitStack() as shared:
        root = shared.enter_context(_shared(scratch, "root", "/", "cache=always"))
        kept = shared.enter_context(_shared(scratch, "artefacts", artefacts, "cache=none"))
        with open(f"{scratch}/initramfs", "wb") as file:
            units = systemd.UNITS if as_unit else {}
            file.write(
                initramfs.archive(busybox, found, command, directory=directory, environment=environment, units=units)
            )
        disk = f"{scratch}/disk"
        with open(disk, "wb") as file:
            file.truncate(_DISK)
        subprocess.run(["mkfs.ext4", "-q", "-F", disk], check=True, env={"PATH": _PATH})
        words = f"{_KERNEL} {systemd.KERNEL}" if as_unit else _KERNEL
        console = Console(f"{artefacts}/console.log", quiet=quiet)
        machine = _qemu(found.image, f"{scratch}/initramfs", [root, kept], disk, words)
        monitor = f"{scratch}/monitor"
        machine += ["-monitor", f"unix:{monitor},server=on,wait=off"]
        return _watch(machine, timeout, silence, console, lambda: _look(monitor, f"{artefacts}/processors.txt"))


@contextlib.contextmanager
def _shared(scratch: str, tag: str, source: str, cache: str) -> Iterator[tuple[str, str]]:
    """A virtiofsd that shares a directory of the host's: (tag, socket). It ends with the machine, its one client."""
    socket = f"{scratch}/{tag}"
    program = next(path for path in _VIRTIOFSD if os.path.exists(path))
    words = [program, f"--socket-path={socket}", "-o", f"source={source}", "-o", cache, "-o", "sandbox=chroot"]
    with open(f"{socket}.log", "wb") as log:
        daemon = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 10
        while not os.path.exists(socket):
            if daemon.poll() is not None or time.monotonic() > deadline:
                with open(f"{socket}.log") as file:
                    raise RuntimeError(f"{source} of the host cannot be shared: {file.read()[-500:]}")
            time.sleep(0.02)
        yield tag, socket
    finally:
        daemon.terminate()
        daemon.wait(10)


def _qemu(image: str, initial: str, shared: list[tuple[str, str]], disk: str, words: str) -> list[str]:
    files: list[str] = []
    for tag, path in shared:
        files += ["-chardev", f"socket,id={tag},path={path}"]
        files += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
    return [
        "qemu-system-x86_64", "-M", "q35,memory-backend=m", "-accel", "tcg,thread=multi", "-cpu", "max,+svm,+npt",
        "-smp", "2", "-m", _MEMORY, "-object", f"memory-backend-memfd,id=m,size={_MEMORY},share=on", *files,
        "-drive", f"file={disk},if=virtio,format=raw,cache=unsafe",
        "-kernel", image, "-initrd", initial, "-append", words,
        "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
    ]  # fmt: skip


def _look(monitor: str, path: str) -> None:
    """Write down what a machine that stands still does, then have its kernel say where it is."""
    with socket.socket(socket.AF_UNIX) as asking, open(path, "wb") as file, contextlib.suppress(OSError):
        asking.settimeout(2)
        asking.connect(monitor)
        for command in _LOOK:
            asking.sendall(f"{command}\n".encode())
            with contextlib.suppress(TimeoutError):
                while data := asking.recv(65536):
                    file.write(data)


def _watch(
    words: list[str], timeout: float, silence: float, console: Console, look: Callable[[], None] = lambda: None
) -> int:
    """Follow the console until it tells the exit status; ``look`` at a machine that says nothing any more."""
    machine = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert machine.stdout is not None
    deadline = time.monotonic() + timeout
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(machine.stdout, selectors.EVENT_READ)
            while console.status is None:
                if not selector.select(max(0.0, min(deadline - time.monotonic(), silence))):
                    if time.monotonic() < deadline:
                        look()
                        while selector.select(_LAST_WORDS) and (raw := os.read(machine.stdout.fileno(), 65536)):
                            console.feed(raw)
                        raise RuntimeError(f"the machine has said nothing for {silence:.0f} s: see {console.path}")
                    raise RuntimeError(f"the machine did not end within {timeout:.0f} s: see {console.path}")
                raw = os.read(machine.stdout.fileno(), 65536)
                if not raw:
                    break
                console.feed(raw)
    finally:
        machine.kill()  # nothing in it is wanted any more
        machine.wait()
        console.close()
    if console.status is None:
        raise RuntimeError(f"the machine ended without telling how its command ended: see {console.path}")
    return console.status
