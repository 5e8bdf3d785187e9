"""An ordinary user who exists for the tests alone: his account and his subordinate ids are files that only he sees.

Every command of his runs in a mount namespace of its own, in which made-up files lie over /etc/passwd, /etc/subuid and
what else a test wants to change. The host's own files are never touched. Where the interpreter lies in a directory that
only root may enter, it is shown to him there.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

# Of this run of the suite alone: his processes are ended by their owner.
UID = 50_000 + os.getpid() % 10_000
FIRST, SIZE = (10 + os.getpid() % 10_000) * 65_536, 65_536  # his subordinate ids
HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
PROGRAMS = os.path.dirname(sys.executable)


class Person:
    """One user, with a home of his own, with or without subordinate ids."""

    def __init__(self, home: str, *, ids: bool) -> None:
        self.home, self.ids = home, ids
        self.run_directory = f"{home}/run"
        self._etc = f"{home}/etc"
        for path in (self.run_directory, self._etc):
            os.mkdir(path, 0o700 if path == self.run_directory else 0o755)
        for path in (home, self.run_directory):
            os.chown(path, UID, UID)
        os.chmod(home, 0o755)
        grant = f"person:{FIRST}:{SIZE}\n" if ids else ""
        self.file("/etc/passwd", _read("/etc/passwd") + f"person:x:{UID}:{UID}::{home}:/bin/sh\n")
        self.file("/etc/group", _read("/etc/group") + f"person:x:{UID}:\n")
        self.file("/etc/subuid", grant)
        self.file("/etc/subgid", grant)
        self.before: list[str] = []  # further commands of root's, in the namespace of mounts

    def file(self, path: str, text: str) -> None:
        """What he finds there instead of the host's file."""
        with open(f"{self._etc}/{os.path.basename(path)}", "w") as file:
            file.write(text)

    def command(self, *words: str, wrapper: tuple[str, ...] = ()) -> list[str]:
        """The words as this user, in his namespace of mounts; ``wrapper`` stands before all."""
        return [*wrapper, *self.prefix(self.home), *words]

    def prefix(self, directory: str) -> list[str]:
        """What makes the words that follow his own, in a directory."""
        setup = ["set -e", *_reveal(), *self._mounts(), *self.before]
        environment = {
            "HOME": self.home, "XDG_RUNTIME_DIR": self.run_directory, "USER": "person", "LANG": "C.UTF-8",
            "PATH": f"{PROGRAMS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }  # fmt: skip
        given = " ".join(f"{name}={shlex.quote(text)}" for name, text in environment.items())
        become = f'exec setpriv --reuid {UID} --regid {UID} --clear-groups env -i {given} "$@"'
        script = "\n".join([*setup, f"cd {shlex.quote(directory)}", become])
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]

    def run(
        self, *words: str, input: bytes = b"", timeout: float = 120, wrapper: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run the words as this user."""
        done = subprocess.run(
            self.command(*words, wrapper=wrapper), input=input, capture_output=True, timeout=timeout, check=False
        )
        text = [stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr)]
        return subprocess.CompletedProcess(words, done.returncode, *text)

    def mamushka(self, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
        """The command line."""
        return self.run(f"{PROGRAMS}/mamushka", *words, **options)  # type: ignore[arg-type]

    def good(self, *words: str, **options: object) -> str:
        """What mamushka says when it succeeds."""
        done = self.mamushka(*words, **options)
        assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}: {done.stderr}"
        return done.stdout

    def bad(self, *words: str, **options: object) -> str:
        """What it says when it refuses."""
        done = self.mamushka(*words, **options)
        assert done.returncode != 0, f"{' '.join(words)} went well: {done.stdout}"
        return done.stderr

    def python(self, text: str, **options: object) -> subprocess.CompletedProcess[str]:
        """A program of his own."""
        return self.run(sys.executable, "-c", text, **options)  # type: ignore[arg-type]

    def processes(self) -> list[int]:
        """All living processes that are his, or one of his subordinate ids'."""
        found = []
        for name in filter(str.isdecimal, os.listdir("/proc")):
            try:
                owner = os.stat(f"/proc/{name}").st_uid
                with open(f"/proc/{name}/stat") as file:
                    state = file.read().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state not in "ZX" and (owner == UID or FIRST <= owner < FIRST + SIZE):
                found.append(int(name))
        return found

    def _mounts(self) -> list[str]:
        """His files over the host's; and a /dev/net/tun that everybody may open, as distributions have it."""
        lines = [f"mount --bind {shlex.quote(f'{self._etc}/{name}')} /etc/{name}" for name in os.listdir(self._etc)]
        return [
            *(line for line in lines if os.path.exists(line.rpartition(" ")[2])),
            "if [ -d /dev/net ]; then mount -t tmpfs -o mode=755 none /dev/net; fi",
            # Not where a wrapper has made a user namespace, or the kernel has no such device.
            "mknod -m 666 /dev/net/tun c 10 200 2>/dev/null || true",
        ]


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _reveal() -> list[str]:
    """Show him the interpreter, its packages and the checkout where a directory above them is closed to him."""
    lines: list[str] = []
    hidden: dict[str, set[str]] = {}
    for path in {sys.base_prefix, sys.prefix, HERE}:
        above = path
        closed = ""
        while above != "/":
            if not os.stat(above).st_mode & 0o001:
                closed = above
            above = os.path.dirname(above)
        if closed:
            hidden.setdefault(closed, set()).add(path)
    for closed, paths in hidden.items():
        held = "/mnt"  # a place to hold them meanwhile, in this namespace alone
        lines.append(f"mount -t tmpfs none {held}")
        for number, path in enumerate(sorted(paths)):
            lines += [f"mkdir {held}/{number}", f"mount --bind {shlex.quote(path)} {held}/{number}"]
        lines.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(closed)}")
        for number, path in enumerate(sorted(paths)):
            lines += [f"mkdir -p {shlex.quote(path)}", f"mount --move {held}/{number} {shlex.quote(path)}"]
    return lines
