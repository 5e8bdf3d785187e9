"""create, run, start, kill, delete, pause, resume."""

from __future__ import annotations

import os

from mamushka.container.runtime import ContainerRuntime
from mamushka.errors import Invalid, NotFound, Unsupported
from mamushka.interfaces.oci.arguments import UsageError
from mamushka.interfaces.oci.commands import DEFAULT_ROOT
from mamushka.linux.process import initial
from mamushka.runtime import Bundle, Stdio
from mamushka.spec import runtime as spec
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.oci.arguments import Arguments
    from mamushka.machine.runtime import MachineRuntime
    from mamushka.runtime import Started

    Wall = ContainerRuntime | MachineRuntime

# More than systemd ever passes; a typing error must not become thousands of system calls.
_PRESERVE_MAX = 1024


def runtime(options: Arguments) -> Wall:
    """The runtime of the state directory that --root names, with the cgroup manager of new containers.

    ``--runtime vm`` is the other wall. Both keep their records alike, so they may share the directory.
    """
    manager = options.get("cgroup-manager", "systemd" if "systemd-cgroup" in options else "cgroupfs")
    root = os.path.abspath(options.get("root") or _default_root())
    name = options.get("runtime", "container")
    if name == "vm":
        from mamushka.engine.machines import open_machines

        return open_machines(root, manager=manager, cache=f"{_default_root()}.cache", kernel=options.get("kernel", ""))
    if name != "container":
        raise UsageError(f"--runtime {name!r} is not part of this version", hint="container or vm")
    return ContainerRuntime(root, cgroups=manager)


def _default_root() -> str:
    if os.geteuid() == 0 and initial():
        return DEFAULT_ROOT
    from mamushka.interfaces.oci.rootless import default_root

    return default_root()


def read_bundle(given: Arguments) -> Bundle:
    """The bundle that --bundle and --config name; without them, the current directory's."""
    path = os.path.abspath(given.get("bundle", "."))
    name = os.path.join(path, given.get("config", "config.json"))
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(
            f"JSON specification file {name} not found",
            hint="mamushka-oci spec writes one; --bundle names another place",
        ) from None
    try:
        size = os.fstat(descriptor).st_size
        return Bundle(path, spec.parse(os.read(descriptor, size + 1)))
    finally:
        os.close(descriptor)


def preserved(given: Arguments) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(descriptors that the program inherits, environment that tells it of them). sd_listen_fds(3)."""
    count = given.number("preserve-fds")
    environment: tuple[str, ...] = ()
    listen = os.environ.get("LISTEN_FDS", "")
    if listen.isdigit() and os.environ.get("LISTEN_PID") == str(os.getpid()):
        count += int(listen)
        environment = (f"LISTEN_FDS={listen}", "LISTEN_PID=1")
        names = os.environ.get("LISTEN_FDNAMES", "")
        environment += (f"LISTEN_FDNAMES={names}",) if names else ()
    if not 0 <= count <= _PRESERVE_MAX:
        raise UsageError(f"cannot preserve {count} descriptors", hint=f"at most {_PRESERVE_MAX}")
    return tuple(range(3, 3 + count)), environment


def create(options: Arguments, given: Arguments, id: str) -> None:
    """Build a container and leave it behind the gate."""
    _make(options, given, id, gated=True)


def run(options: Arguments, given: Arguments, id: str) -> int:
    """create, start and, unless detached, wait and delete."""
    from mamushka.interfaces.oci import foreground

    detached = "detach" in given
    started, bundle = _make(options, given, id, gated=False)
    if detached:
        return 0
    try:
        return foreground.follow(started, bundle.config.process)
    finally:
        if "keep" not in given:
            runtime(options).delete(id, force=True)


def _make(options: Arguments, given: Arguments, id: str, *, gated: bool) -> tuple[Started, Bundle]:
    bundle = read_bundle(given)
    process = bundle.config.process
    hand_out = gated or "detach" in given
    check_console(given, terminal=bool(process and process.terminal), detached=hand_out)
    preserve, environment = preserved(given)
    if process and environment:
        process = replace(process, env=process.env + environment)
        bundle = Bundle(bundle.path, replace(bundle.config, process=process))
    wall = runtime(options)
    if not isinstance(wall, ContainerRuntime):
        from mamushka.engine.runtimes import KERNEL

        check_machines(bundle.config.annotations.get(KERNEL) or options.get("kernel", ""))
    elif os.geteuid() != 0 or "rootless" in options:
        from mamushka.interfaces.oci import rootless

        if rootless.asked(options):
            rootless.enter(bundle.config)
            wall.entered = True
    how = {"no_pivot": "no-pivot" in given, "keyring": "no-new-keyring" not in given}
    if process and "NOTIFY_SOCKET" in os.environ and isinstance(wall, ContainerRuntime):
        from mamushka.interfaces.oci import notify

        return notify.make(wall, id, bundle, given, preserve, how, gated=gated), bundle
    make = wall.create if gated else wall.run
    started = make(id, bundle, Stdio(), preserve=preserve, **how)
    try:
        return hand_over(started, given, detached=hand_out), bundle
    except BaseException:
        wall.delete(id, force=True)
        raise


def check_machines(kernel: str) -> None:
    """Unsupported where no machine can run, before anything is made."""
    from mamushka.engine.machines import obstacle

    reason = obstacle(kernel, directories=True)
    if reason:
        raise Unsupported(f"runtime vm: {reason}", hint="mamushka doctor says what helps; or leave out --runtime vm")


def check_console(given: Arguments, *, terminal: bool, detached: bool) -> None:
    """A terminal must have somebody at its other end."""
    if terminal and detached and "console-socket" not in given:
        raise Invalid("cannot allocate tty if the runtime will detach without setting console socket")
    if not (terminal and detached) and "console-socket" in given:
        raise Invalid("cannot use console socket if the runtime will not detach or allocate tty")


def hand_over(started: Started, given: Arguments, *, detached: bool) -> Started:
    """Give the terminal, the pidfd and the pid to whoever asked for them."""
    if started.console >= 0 and detached:
        from mamushka.interfaces.oci.sockets import send

        send(given.get("console-socket"), started.console, b"/dev/ptmx")
        os.close(started.console)
    if "pidfd-socket" in given:
        from mamushka.interfaces.oci.sockets import send

        send(given.get("pidfd-socket"), started.pidfd, b"pidfd")
    if "pid-file" in given:
        _write_pid(given.get("pid-file"), started.pid)
    return started


def _write_pid(path: str, pid: int) -> None:
    """Whole or not there: whoever waits for the file reads it at once."""
    directory, name = os.path.split(path)
    unfinished = os.path.join(directory, f".{name}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    os.write(descriptor, b"%d" % pid)
    os.close(descriptor)
    os.rename(unfinished, path)


def start(options: Arguments, given: Arguments, id: str) -> None:
    """Open the gate."""
    wall = runtime(options)
    if "NOTIFY_SOCKET" in os.environ and isinstance(wall, ContainerRuntime):
        from mamushka.interfaces.oci import notify

        notify.start(wall, id)
    else:
        wall.start(id)


def pause(options: Arguments, given: Arguments, id: str) -> None:
    """Freeze."""
    runtime(options).pause(id)


def resume(options: Arguments, given: Arguments, id: str) -> None:
    """Thaw."""
    runtime(options).resume(id)


def kill(options: Arguments, given: Arguments, id: str, signal: str = "SIGTERM") -> None:
    """Signal one container, or with --regex several."""
    number = signal_number(signal)
    for name in _chosen(options, given, id):
        runtime(options).kill(name, number, all="all" in given)


def delete(options: Arguments, given: Arguments, id: str) -> None:
    """Delete one container, or with --regex several."""
    for name in _chosen(options, given, id):
        runtime(options).delete(name, force="force" in given)


def _chosen(options: Arguments, given: Arguments, id: str) -> list[str]:
    if "regex" not in given:
        return [id]
    import re

    try:
        pattern = re.compile(id)
    except re.error as error:
        raise UsageError(f"{id!r} is no regular expression: {error}") from None
    return [state.id for state in runtime(options).list() if pattern.search(state.id)]


def signal_number(text: str) -> int:
    """A signal by number or by name, with or without SIG."""
    import _signal  # type: ignore[import-not-found]

    if text.isdigit():
        number = int(text)
    else:
        name = text.upper().removeprefix("SIG")
        base, plus, offset = name.partition("+")
        number = getattr(_signal, f"SIG{base}", 0)
        number += int(offset) if plus and offset.isdigit() else 0
    if not 0 < number < _signal.NSIG and text != "0":
        raise Invalid(f"unknown signal {text!r}", hint="kill -l lists the signals")
    return number
