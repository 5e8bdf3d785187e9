"""``machine``: machines without an image, and what is below those of workloads: a debugger, figures."""

from __future__ import annotations

import os
import time

from mamushka.errors import Conflict, Invalid
from mamushka.interfaces.cli.options import Command, flag, many, one
from mamushka.interfaces.cli.table import FORMAT
from mamushka.interfaces.docker import units

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from mamushka.engine.bare import Disk
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session

# What a guest's own status never is: that of the debug exit port is odd.
FAILED = 126
LEAVE = "ctrl-a,x"


def run(arguments: Arguments, session: Session) -> int:
    """Until the machine ends; its status."""
    from mamushka.engine import bare as machines
    from mamushka.interfaces.cli.console import attend
    from mamushka.machine.bare import Bare

    if not arguments.kernel:
        raise Invalid(
            "a machine needs a kernel: --kernel FILE", hint="a bzImage, an ELF kernel, or a multiboot program"
        )
    bare = Bare(
        arguments.kernel,
        arguments.initramfs,
        arguments.append,
        arguments.memory,
        arguments.cpus,
        serial=not arguments.no_serial,
        force=arguments.force,
    )
    listener = listen(arguments.gdb) if arguments.gdb else None
    try:
        return attend(
            lambda terminal: machines.start(bare, terminal, disks=arguments.disk, tap=arguments.net, listener=listener),
            serial=bare.serial,
            leave=LEAVE,
        )
    finally:
        if listener is not None:
            listener.close()
            _forget(arguments.gdb)


def gdb(arguments: Arguments, session: Session) -> int:
    """Over standard input and output where they are a debugger's; else whoever connects, until interrupted."""
    from mamushka.engine import figures

    name = arguments.operands[0]
    figures.check(session.engine, name)
    if not arguments.listen and not os.isatty(0):
        from mamushka.interfaces.cli.console import relay

        return relay(lambda connection: figures.debug(session.engine, name, connection))
    if not arguments.listen:
        raise Invalid(
            "nobody speaks a debugger's language at a terminal",
            hint=f"gdb -ex 'target remote | mamushka machine gdb {name}', or --listen PATH|PORT",
        )
    listener = listen(arguments.listen)
    try:
        while True:
            _introduce(session, name, listener)
    except KeyboardInterrupt:
        return 0
    finally:
        listener.close()
        _forget(arguments.listen)


def _introduce(session: Session, name: str, listener: _socket.socket) -> None:
    """Hand the next who connects to the machine; who cannot be taken now is told by the end of the connection."""
    from mamushka.engine import figures
    from mamushka.interfaces.cli.output import talk
    from mamushka.machine.gdb import accept

    peer = accept(listener)
    try:
        figures.debug(session.engine, name, peer.fileno())
        talk(f"a debugger is attached to {name}")
    except Conflict as error:
        figures.check(session.engine, name)
        talk(f"a debugger was turned away: {error}")
    finally:
        peer.close()


def _forget(where: str) -> None:
    if not where.isdecimal():
        os.unlink(where)


def stats(arguments: Arguments, session: Session) -> int:
    """All figures of a machine between two looks, as rows of class and number."""
    from mamushka.engine import figures
    from mamushka.errors import NotFound
    from mamushka.interfaces.cli import machine_figures

    name = arguments.operands[0]
    figures.check(session.engine, name)
    before = figures.sample(session.engine, name)
    time.sleep(arguments.interval)
    after = figures.sample(session.engine, name)
    if before is None or after is None:
        raise NotFound(f"there are no figures of {name}")
    machine_figures.show(before, after, arguments.format)
    return 0


def listen(where: str) -> _socket.socket:
    """A socket for a debugger at a path or a port of the loopback interface, and a word on how to reach it."""
    from mamushka.interfaces.cli.output import talk
    from mamushka.machine import gdb

    port = where.isdecimal()
    if port and int(where) > 0xFFFF:
        raise Invalid(f"there is no port {where}", hint="0 to 65535, or the path of a Unix socket")
    try:
        listener = gdb.listen(port=int(where)) if port else gdb.listen(unix=where)
    except OSError as error:
        raise Conflict(f"cannot listen for a debugger at {where}: {error.strerror}", hint="choose another") from error
    place = f"127.0.0.1:{listener.getsockname()[1]}" if port else where
    talk(f"a debugger is waited for: gdb -ex 'target remote {place}'")
    return listener


def disk(text: str) -> Disk:
    """FILE[:ro][,format=raw|qcow2]."""
    from mamushka.engine.bare import Disk

    path, *words = text.split(",")
    kind = "raw"
    for word in words:
        name, _, said = word.partition("=")
        if name != "format":
            raise Invalid(f"{word!r} is not known of a disk", hint="as in FILE:ro,format=qcow2")
        kind = said
    if kind not in ("raw", "qcow2"):
        raise Invalid(f"{kind!r} is no format of a disk that we know", hint="format=raw or format=qcow2")
    plain = path.removesuffix(":ro")
    if not plain:
        raise Invalid("a disk without a file")
    return Disk(plain, kind, writable=plain == path)


def net(text: str) -> str:
    """The name of a tap, or nothing for none."""
    kind, _, name = text.partition(":")
    # if_name(4): 15 bytes and a NUL.
    if text == "none":
        return ""
    if kind != "tap" or not 0 < len(name.encode()) < 16 or "/" in name:
        raise Invalid("not none or tap:NAME", hint="as in --net tap:tap0")
    return name


def executor(text: str) -> str:
    """What runs the virtual CPUs."""
    if text != "kvm":
        raise Invalid("not part of this version", hint="kvm is what there is")
    return text


def processors(text: str) -> int:
    """A number of virtual CPUs."""
    return units.natural(text)


COMMANDS = {
    "machine run": Command(
        run,
        options=(
            one("--kernel", "What to boot: a bzImage, an ELF kernel, a multiboot program, a kernel's directory", "file",
                complete="file"),
            many("--initramfs", "A first file system; for a multiboot program, a module", "file", complete="file"),
            many("--disk", "A disk: FILE[:ro][,format=qcow2]", "file", convert=disk, complete="file"),
            one("-m, --memory", "The machine's memory", "bytes", default=512 << 20, convert=units.size),
            one("--cpus", "Virtual CPUs", "number", default=1, convert=processors),
            one("--append", "Words for the command line of the kernel", "words"),
            flag("--no-serial", "Without a serial port"),
            one("--net", "A network card: none, or tap:NAME", "net", default="", convert=net),
            one("--gdb", "Wait for a debugger before the first instruction, at this path or port", "path|port"),
            one("--executor", "What runs the virtual CPUs: kvm", "name", default="kvm", convert=executor),
            flag("--force", "Try an operating system's kernel where this host's KVM is known not to run one"),
        ),
        maximum=0,
        failure=FAILED,
        notes="The serial port is this terminal, which gives every key to the machine; ctrl-a x ends it.\n"
        "The exit code is 0 for a machine that switched itself off or rebooted, 2v+1 for a program that\n"
        "wrote v to port 0xf4, and 126 for one that broke, with the reason.",
    ),
    "machine gdb": Command(
        gdb,
        "WORKLOAD",
        (one("--listen", "Where debuggers connect: a path, or a port of 127.0.0.1; 0 is any", "path|port"),),
        minimum=1,
        maximum=1,
        failure=FAILED,
        complete="running",
        notes="Without --listen the debugger is at standard input and output:\n"
        "    gdb -ex 'target remote | mamushka machine gdb WORKLOAD' vmlinux\n"
        "The machine holds still while a debugger is attached and has not let it go on. Whoever reaches the path or\n"
        "the port owns the machine; a port can be reached by every user of this host.",
    ),
    "machine stats": Command(
        stats,
        "WORKLOAD",
        (
            FORMAT,
            one("--interval", "Seconds between the two looks", "seconds", default=1.0, convert=units.number),
        ),
        minimum=1,
        maximum=1,
        failure=FAILED,
        complete="running",
    ),
}  # fmt: skip
