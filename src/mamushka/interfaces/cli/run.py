"""``run`` and ``create``."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself would bring enum into every start

from mamushka import trace
from mamushka.errors import Invalid, MamushkaError, NotFound
from mamushka.interfaces.cli.options import Command
from mamushka.interfaces.cli.output import out, talk
from mamushka.interfaces.cli.settings import reserve, settings
from mamushka.interfaces.cli.workload_options import CREATE, RUN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.attach import Attached
    from mamushka.engine.settings import Mount, Settings
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session


def run(arguments: Arguments, session: Session) -> int:
    """Create, start, and stay unless asked to leave."""
    # Who is stopped before the workload runs must still keep what --rm promises.
    _signal.signal(_signal.SIGTERM, _stopped)
    wanted = _wanted(arguments, session)
    streams = _streams(arguments)
    if arguments.detach:
        identifier = _create(wanted, arguments, session)
        _start(identifier, wanted, session, stay=False)
        out(identifier)
        return 0
    return _run_here(wanted, streams, arguments, session)


def _stopped(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def create(arguments: Arguments, session: Session) -> int:
    """Create and print the id."""
    wanted = _wanted(arguments, session)
    out(_create(wanted, arguments, session))
    return 0


def _wanted(arguments: Arguments, session: Session) -> Settings:
    return settings(arguments, volumes_from(arguments.volumes_from, session) if arguments.volumes_from else ())


def _streams(arguments: Arguments) -> frozenset[str]:
    """Which streams ``-a`` asks for; without it output, and input where it is kept open."""
    if arguments.attach and arguments.detach:
        raise Invalid("--attach and --detach contradict each other")
    wanted = frozenset(word.lower() for word in arguments.attach)
    strange = wanted - {"stdin", "stdout", "stderr"}
    if strange:
        raise Invalid(f"--attach {min(strange)!r} is not a stream", hint="stdin, stdout or stderr")
    if not wanted:
        return frozenset(("stdout", "stderr", *(("stdin",) if arguments.interactive else ())))
    return wanted


def _run_here(wanted: Settings, streams: frozenset[str], arguments: Arguments, session: Session) -> int:
    from mamushka.interfaces.cli import foreground

    stdin = "stdin" in streams and arguments.interactive
    foreground.check_terminal(terminal=wanted.terminal, stdin=stdin)
    foreground.DetachKeys(arguments.detach_keys)  # a wrong spelling is refused before anything is made
    identifier = _create(wanted, arguments, session)
    facts = _announce(identifier, session) if session.debug else {}
    size = foreground.terminal_size() if wanted.terminal else None
    attached = _start(identifier, wanted, session, stay=True, stdin=stdin, size=size)
    assert attached is not None
    numbers = tuple(number for number, name in ((1, "stdout"), (2, "stderr")) if name in streams)
    status = foreground.attend(
        attached,
        stdin=stdin,
        terminal=wanted.terminal,
        streams=numbers,
        proxy=arguments.sig_proxy,
        detach_keys=arguments.detach_keys,
    )
    if session.debug:
        trace.event("run.ended", **facts, status=status)
    return status


def _announce(identifier: str, session: Session) -> dict[str, str]:
    """For --debug: what will run and behind which wall; asked now, because with --rm it is gone afterwards."""
    workload = session.engine.inspect(identifier)
    wall = workload.runtime + (f" ({workload.runtime_reason})" if workload.runtime_reason else "")
    facts = {"image": workload.image_name, "command": " ".join(workload.command), "runtime": wall}
    trace.event("run.begins", **facts)
    return facts


def _start(
    identifier: str,
    wanted: Settings,
    session: Session,
    *,
    stay: bool,
    stdin: bool = False,
    size: tuple[int, int] | None = None,
) -> Attached | None:
    """Start what was just created; with --rm nothing stays of what cannot start."""
    try:
        return session.engine.start(identifier, attach=stay, stdin=stdin, size=size)
    except BaseException:
        if wanted.remove:
            try:
                session.engine.remove(identifier, force=True, volumes=True)
            except MamushkaError:
                pass  # the engine removed it already, or the first error says it all
        raise


def _create(wanted: Settings, arguments: Arguments, session: Session) -> str:
    """The id of a new workload, its image pulled where the policy says so."""
    if arguments.cidfile:
        reserve(arguments.cidfile)
    try:
        identifier = create_pulled(wanted, arguments, session)
    except BaseException:
        if arguments.cidfile:
            import os

            os.unlink(arguments.cidfile)
        raise
    if arguments.cidfile:
        with open(arguments.cidfile, "w") as file:
            file.write(identifier)
    return identifier


def create_pulled(wanted: Settings, arguments: Arguments, session: Session) -> str:
    """The image is looked up by ``create`` alone; only its absence is worth a second look."""
    if arguments.pull == "always" and wanted.image != "host" and not wanted.rootfs:
        _pull(wanted, arguments, session)
    try:
        return session.engine.create(wanted)
    except NotFound:
        if wanted.rootfs or arguments.pull != "missing" or _is_present(wanted, session):
            raise
    if not arguments.quiet:
        talk(f"Unable to find image '{wanted.image}' locally")
    _pull(wanted, arguments, session)
    return session.engine.create(wanted)


def _is_present(wanted: Settings, session: Session) -> bool:
    try:
        session.engine.images.get(wanted.image, platform=wanted.platform)
    except NotFound:
        return False
    return True


def _pull(wanted: Settings, arguments: Arguments, session: Session) -> None:
    from mamushka.interfaces.cli import progress

    progress.show(session.engine.images.pull(wanted.image, platform=wanted.platform), quiet=arguments.quiet)


def volumes_from(sources: tuple[str, ...], session: Session) -> tuple[Mount, ...]:
    """The mounts of other workloads, their anonymous volumes by the names they were given."""
    from mamushka.engine.settings import Mount
    from mamushka.values import replace

    found: dict[str, Mount] = {}
    for source in sources:
        name, _, mode = source.partition(":")
        if mode not in ("", "ro", "rw"):
            raise Invalid(f"--volumes-from {source!r} is not NAME[:ro|rw]")
        other = session.engine.inspect(name)
        mounts = {mount.destination: mount for mount in other.settings.mounts if mount.kind != "tmpfs"}
        for destination, volume in other.volumes:
            mounts[destination] = replace(mounts.get(destination, Mount("volume", destination)), source=volume)
        for destination, mount in mounts.items():
            found[destination] = replace(mount, read_only=True) if mode == "ro" else mount
    return tuple(found.values())


COMMANDS = {
    "run": Command(run, "IMAGE [COMMAND] [ARG...]", RUN, minimum=1, interspersed=False, failure=125, complete="image"),
    "create": Command(
        create, "IMAGE [COMMAND] [ARG...]", CREATE, minimum=1, interspersed=False, failure=125, complete="image"
    ),
}
