"""checkpoint and restore."""

from __future__ import annotations

import os

from mamushka.errors import Unsupported
from mamushka.interfaces.oci.arguments import UsageError
from mamushka.interfaces.oci.lifecycle import check_console, hand_over, read_bundle, runtime
from mamushka.runtime import CheckpointOptions, Stdio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.oci.arguments import Arguments


def checkpoint(options: Arguments, given: Arguments, id: str) -> None:
    """Write a container down; it is deleted then, unless it is to run on."""
    asked = _options(given)
    if asked.status_fd >= 0:
        try:
            os.fstat(asked.status_fd)
        except OSError:
            raise UsageError(f"--status-fd {asked.status_fd} is not open") from None
    wall = runtime(options)
    wall.checkpoint(id, _images(given), asked)
    if not (asked.leave_running or asked.pre_dump):
        wall.delete(id)


def restore(options: Arguments, given: Arguments, id: str) -> int:
    """Make a container from what was written down and, unless detached, wait and delete."""
    bundle = read_bundle(given)
    process = bundle.config.process
    detached = "detach" in given
    if given.number("preserve-fds"):
        raise Unsupported("--preserve-fds means nothing to restore: what was open is open again")
    check_console(given, terminal=bool(process and process.terminal), detached=detached)
    wall = runtime(options)
    keyring = "no-new-keyring" not in given
    started = wall.restore(id, bundle, Stdio(), _images(given), _options(given), keyring=keyring)
    try:
        hand_over(started, given, detached=detached)
    except BaseException:
        wall.delete(id, force=True)
        raise
    if detached:
        return 0
    from mamushka.interfaces.oci import foreground

    try:
        return foreground.follow(started, process)
    finally:
        if "keep" not in given:
            wall.delete(id, force=True)


def _images(given: Arguments) -> str:
    return os.path.abspath(given.get("image-path", "checkpoint"))


def _options(given: Arguments) -> CheckpointOptions:
    """The flags as the runtime takes them."""
    empty = given.all("empty-ns")
    if set(empty) - {"network"}:
        raise UsageError(f"--empty-ns {' '.join(empty)}: only network can be empty")
    status = given.number("status-fd", -1)
    if status != -1 and status < 3:
        raise UsageError(f"--status-fd {status} is a standard stream")
    return CheckpointOptions(
        work=given.get("work-path"),
        parent=given.get("parent-path"),
        page_server=given.get("page-server"),
        status_fd=status,
        cgroups=given.get("manage-cgroups-mode"),
        network_lock=given.get("network-lock"),
        lsm_profile=given.get("lsm-profile"),
        lsm_mount_context=given.get("lsm-mount-context"),
        empty_network=bool(empty),
        **{name.replace("-", "_"): name in given for name in _SWITCHES},
    )


_SWITCHES = (
    "pre-dump", "leave-running", "lazy-pages", "auto-dedup", "tcp-established", "tcp-skip-in-flight", "tcp-close",
    "ext-unix-sk", "shell-job", "file-locks", "link-remap",
)  # fmt: skip
