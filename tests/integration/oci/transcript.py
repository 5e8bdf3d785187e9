"""What a caller was told, word for word, in a form that two runtimes' can be compared in."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

PROGRAM = os.path.join(os.path.dirname(sys.executable), "mamushka-oci")

# What names one run, or the runtime itself.
_VARYING = (
    (re.compile(re.escape(PROGRAM)), "RUNTIME"),
    (re.compile(r"(/usr/s?bin/)?\brunc\b|mamushka-oci"), "RUNTIME"),
    (re.compile(r"\b[0-9a-f]{12,64}\b"), "ID"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-][\d:]+)|\d\d:\d\d:\d\d"), "TIME"),
    (re.compile(r"\bpid \d+|\b\d{3,}\b"), "NUMBER"),
)
_ATTEMPTS = 200


class Transcript:
    """Commands of one caller and what came of each: words, exit code, output, errors."""

    def __init__(self, command: Sequence[str], *, errors: Callable[[str], str] = str) -> None:
        self.command, self.errors = list(command), errors
        self.entries: list[tuple[str, int, str, str]] = []

    def __call__(self, *words: str, input: str = "", note: bool = True) -> str:
        """Run to the end; its output."""
        done = subprocess.run(
            [*self.command, *words], input=input, capture_output=True, text=True, timeout=120, check=False
        )
        if note:
            self._note(words, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def on_a_terminal(self, *words: str, typed: str, after: str) -> str:
        """The same with a terminal of 30 by 90 for everything; something is typed once ``after`` is shown."""
        master, slave = pty.openpty()
        subprocess.run(["stty", "rows", "30", "cols", "90"], stdin=slave, check=True)
        with subprocess.Popen(
            [*self.command, *words], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        ) as process:
            os.close(slave)
            shown = b""
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                if select.select([master], [], [], 0.2)[0]:
                    try:
                        shown += os.read(master, 65536)
                    except OSError:  # nobody has it open any more
                        break
                    if typed and after in shown.decode(errors="replace"):
                        os.write(master, typed.encode())
                        typed = ""
                elif process.poll() is not None:
                    break
            else:  # it waits for what does not come
                process.kill()
            code = process.wait(60)
        os.close(master)
        text = shown.decode().replace("\r\n", "\n")
        self._note(words, code, text, "")
        return text

    def until(self, wanted: str, *words: str) -> None:
        """Ask again and again until the output has what is wanted; not noted."""
        for _ in range(_ATTEMPTS):
            if wanted in self(*words, note=False):
                return
            time.sleep(0.05)
        raise AssertionError(f"{' '.join(words)} never says {wanted!r}")

    def _note(self, words: Sequence[str], code: int, output: str, errors: str) -> None:
        self.entries.append((" ".join(words), code, self.errors(normal(output)), self.errors(normal(errors))))


def normal(text: str) -> str:
    """Without what varies from run to run."""
    for pattern, word in _VARYING:
        text = pattern.sub(word, text)
    # Columns are as wide as the numbers that stood there.
    return re.sub(" {2,}", "  ", text).strip()


def assert_equal(ours: Transcript, theirs: Transcript) -> None:
    """Entry by entry, so that the first difference is what is shown."""
    for mine, other in zip(ours.entries, theirs.entries, strict=True):
        assert mine[1:3] == other[1:3], f"{mine[0]}: ours {mine}, theirs {other}"
        assert mine[3] == other[3], f"{mine[0]}:\nours   {mine[3]}\ntheirs {other[3]}"
