"""The OCI command's start is most of what its callers wait for, so what it imports is counted."""

from __future__ import annotations

import subprocess
import sys

# Everything that ``mamushka-oci run`` imports before the clone, on any layout of cgroups.
RUN = (
    "mamushka.interfaces.oci.commands",
    "mamushka.interfaces.oci.lifecycle",
    "mamushka.interfaces.oci.foreground",
    "mamushka.container.creation",
    "mamushka.container.privileges",
    "mamushka.container.seccomp",
    "mamushka.container.cgroups.v2",
)
# Each costs one to twenty milliseconds, or drags in what does.
FORBIDDEN = {
    "argparse", "asyncio", "collections", "contextlib", "dataclasses", "enum", "functools", "importlib.util",
    "inspect", "json", "logging", "pathlib", "re", "shutil", "signal", "socket", "subprocess", "tempfile", "threading",
    "typing",
}  # fmt: skip
# Our own modules behind one ``run``; each is a tenth of a millisecond. Three of them (script, executable, vfork)
# save a fork of the interpreter, which costs more than ten.
OWN_MAX = 57


def _loaded(imports: tuple[str, ...]) -> set[str]:
    # Without site: what an environment's own start-up files import is not ours.
    paths = [path for path in sys.path if path]
    code = f"import sys; sys.path[:0] = {paths!r}; import {', '.join(imports)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_run_imports_nothing_heavy() -> None:
    loaded = _loaded(RUN)
    assert loaded & FORBIDDEN == set()
    own = sorted(name for name in loaded if name.startswith("mamushka"))
    assert len(own) <= OWN_MAX, own


def test_the_version_needs_no_container() -> None:
    loaded = _loaded(("mamushka.interfaces.oci",))
    assert not any(name.startswith(("mamushka.container", "mamushka.linux")) for name in loaded)
