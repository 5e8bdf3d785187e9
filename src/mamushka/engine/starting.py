"""Starting a workload: root, networks and bundle are made ready here; the shim that runs it is forked last.

Whoever starts holds the workload's lock from the beginning and passes it on to the shim by the fork. So at each
instant somebody holds it who will finish, or it is free and the next command repairs (gc.sweep).
"""

from __future__ import annotations

import os

from mamushka import document, trace
from mamushka.engine import bundle, frames, gc, host, logs, rootfs, shim, userns, wiring
from mamushka.engine.attach import Connection, pair
from mamushka.engine.launch import Launch, mount
from mamushka.engine.mounts import Sources
from mamushka.engine.pump import Client, Pump
from mamushka.engine.records import encode
from mamushka.engine.removal import release, remove_socket
from mamushka.engine.runtimes import preload
from mamushka.engine.workload import ACTIVE, after, load
from mamushka.errors import Conflict, Unavailable
from mamushka.linux import lock
from mamushka.linux.process import initial
from mamushka.runtime import Disks
from mamushka.values import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.checkpoints import Checkpoint
    from mamushka.engine.engine import Engine
    from mamushka.engine.wiring import Place
    from mamushka.engine.workload import Workload
    from mamushka.network.carrier import Carrier
    from mamushka.spec.runtime import Config


def start(
    engine: Engine, identifier: str, flags: int, size: tuple[int, int] | None, state: Checkpoint | None = None
) -> Connection | None:
    """Start it, perhaps from a checkpoint; None when it runs already. The connection has the flags of frames.py."""
    id = engine.state.find(identifier).id
    door = gc.open_lock(engine, id)
    try:
        lock.take(door, byte=gc.DOOR, wait=True)
        return _enter(engine, id, flags, size, state)
    finally:
        os.close(door)


def _enter(
    engine: Engine, id: str, flags: int, size: tuple[int, int] | None, state: Checkpoint | None
) -> Connection | None:
    """Past the door: nobody else starts or removes it."""
    holder = gc.open_lock(engine, id)
    try:
        if not lock.take(holder):
            gc.settle(engine)
            if engine.state.find(id).status in ACTIVE:
                return None
            lock.take(holder, wait=True)  # its shim has told its end and is about to let go
        row = engine.state.find(id)
        if row.status in ACTIVE:
            gc.finish(engine, row)
            row = engine.state.find(id)
        if row.status in ACTIVE:
            raise Conflict(
                f"container {row.name} runs without its shim, which was killed",
                hint=f"mamushka stop {row.name}, then start it again",
            )
        engine.state.change(id, status=after(row.status, "start", row.name))
        return _start(engine, load(row), holder, flags, size, state)
    finally:
        os.close(holder)


def _start(
    engine: Engine,
    workload: Workload,
    holder: int,
    flags: int,
    size: tuple[int, int] | None,
    state: Checkpoint | None,
) -> Connection | None:
    open_fds: list[int] = []
    try:
        connection, place = _launch(engine, workload, holder, flags, size, state, open_fds)
    except BaseException as error:
        _fail(engine, workload, error)
        raise
    finally:
        for fd in open_fds:
            os.close(fd)
    _record(engine, workload, place, connection)
    return connection


def _launch(
    engine: Engine,
    workload: Workload,
    holder: int,
    flags: int,
    size: tuple[int, int] | None,
    state: Checkpoint | None,
    open_fds: list[int],
) -> tuple[Connection, Place]:
    if state is not None:
        from mamushka.engine.checkpoints import restoring, take_disk

        take_disk(engine, workload, state)
    launch = _layers(engine, workload)
    if state is not None:
        launch = replace(launch, state=state.directory, restoring=restoring(state))
    root = mount(launch)
    open_fds.append(root)
    place = wiring.join(engine, workload)
    open_fds += place.descriptors
    trace.event("workload.prepare", id=workload.id, layers=len(launch.lowers))
    config = _config(engine, workload, root, place, size)
    post = _post(engine, workload, launch, holder, place)
    listener = _listen(engine, workload.id)
    ours, theirs = pair()
    open_fds += [listener, theirs]

    def serve() -> None:
        _serve(engine, post, config, root, listener, theirs, flags, place.carrier)

    preload(workload.runtime)
    if not initial():
        # A child of a process with threads must import nothing: another might just be importing the same.
        pass
    memory = (launch.restoring.memory,) if launch.restoring.memory >= 0 else ()
    shim.fork(serve, (holder, root, listener, theirs, *place.descriptors, *memory))
    os.close(open_fds.pop())  # theirs: when the shim dies, reading ends
    connection = Connection(workload.id, ours, at_end=engine.at_end(workload.id))
    try:
        connection.greet()
    except BaseException:
        connection.close()
        raise
    return connection, place


def _serve(
    engine: Engine,
    post: shim.Post,
    config: Config,
    root: int,
    listener: int,
    theirs: int,
    flags: int,
    carrier: Carrier | None,
) -> None:
    """The shim's whole life; a process of its own."""
    if trace.listening():
        trace.subscribe(lambda name, fields: _forward(theirs, name, fields))
    if not initial():
        from mamushka.engine.rootless import stay

        stay(engine.paths.run)
    pump = Pump(listener=listener, log=shim.open_log(post))
    pump.clients.append(Client(theirs, flags | (frames.ONCE if flags & frames.INPUT else 0)))
    served = shim.Shim(post, config, engine.runtime(post.launch.runtime), pump)
    try:
        if carrier is not None:
            served.carry(carrier)
        served.start(root)
    except BaseException as error:
        served.abandon(error)
        return
    served.serve()


def _forward(fd: int, name: str, fields: dict[str, object]) -> None:
    """Events of the start reach whoever asked for it; once it is gone nobody wants them."""
    try:
        os.write(fd, frames.traced(name, fields))
    except OSError:
        pass


def _layers(engine: Engine, workload: Workload) -> Launch:
    settings = workload.settings
    top = rootfs.snapshot(engine, workload)
    return Launch(
        id=workload.id,
        runtime=workload.runtime,
        containers=engine.paths.containers,
        made=engine.paths.made,
        bundle=workload.directory,
        lowers=top.lowers,
        upper=top.upper,
        work=top.work,
        mappings=userns.mappings(workload),
        disks=_disks(engine, workload),
        volatile=settings.remove,
        terminal=settings.terminal,
        stdin=settings.stdin,
    )


def _disks(engine: Engine, workload: Workload) -> Disks:
    if workload.runtime != "vm":
        return Disks()
    from mamushka.engine.machine_root import disks

    return disks(engine, workload)


def _config(
    engine: Engine,
    workload: Workload,
    root: int,
    place: Place,
    size: tuple[int, int] | None,
) -> Config:
    joined = wiring.joined(engine, workload)
    volumes = _volumes(engine, workload, root)
    programs = tuple(host.mounts()) if workload.image_id == host.ID else ()
    sources = Sources(files=place.files, volumes=volumes, joined=joined, further=programs)
    users = f"/proc/self/fd/{place.users}" if place.users >= 0 else ""
    config = bundle.build(workload, root, sources, place.path, users)
    if workload.settings.init:
        from mamushka.engine.init import below

        config = below(config, workload.directory)
    if size and config.process is not None:
        from mamushka.spec.runtime import Box

        config = replace(config, process=replace(config.process, console_size=Box(*size)))
    return config


def _volumes(engine: Engine, workload: Workload, root: int) -> dict[str, str]:
    """The volumes' directories by destination; a fresh volume gets what the image has there."""
    from mamushka.linux.fd import open_in_root

    copied = {item.destination: item.copy_up for item in workload.settings.mounts}
    found = {}
    for destination, name in workload.volumes:
        source = -1
        if copied.get(destination, True):
            try:
                source = open_in_root(root, os.fsencode(destination), os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                pass  # the image has nothing there
        try:
            engine.volumes.populate(name, source)
        finally:
            if source >= 0:
                os.close(source)
        found[destination] = engine.volumes.get(name).path
    return found


def _post(engine: Engine, workload: Workload, launch: Launch, holder: int, place: Place) -> shim.Post:
    settings = workload.settings
    return shim.Post(
        launch=launch,
        directory=workload.directory,
        news=engine.paths.news,
        socket=engine.paths.socket(workload.id),
        log_path=workload.log_path,
        log=logs.options(settings.log_driver, settings.log_options),
        remove=settings.remove,
        memory_limited=settings.limits.memory > 0,
        attributes={"name": workload.name, "image": workload.image_name},
        lock=holder,
        network=place.namespace,
        users=place.users,
        wires=place.wires,
        restart=settings.restart,
    )


def _listen(engine: Engine, id: str) -> int:
    import _socket

    # A socket's name holds 108 bytes and an id alone has 64: the directory is named by its descriptor.
    directory = os.open(engine.paths.shims, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        remove_socket(engine, id)  # a killed shim's; we hold the lock
        socket.bind(f"/proc/self/fd/{directory}/{id}")
        socket.listen(16)
        return socket.detach()
    finally:
        socket.close()
        os.close(directory)


def _record(engine: Engine, workload: Workload, place: Place, connection: Connection) -> None:
    news = {
        "pid": connection.pid,
        "started": connection.started,
        "connections": encode(place.connections),
        "published": encode(place.published),
        "number": "",
    }
    with engine.state.transaction() as state:
        # A short program may have ended and been settled by another process meanwhile: then its end stands, and
        # that process has told of the start too.
        told = document.dump(news).decode()
        changed = state.execute(
            "update workloads set status='running', news=? where id=? and status='starting'", (told, workload.id)
        )
        if changed.rowcount:
            gc.tell_start(state, workload, connection.started)


def _fail(engine: Engine, workload: Workload, error: BaseException) -> None:
    """The start failed: give everything back and keep the reason."""
    engine.runtime(workload.runtime).delete(workload.id, force=True)
    release(engine, workload)
    remove_socket(engine, workload.id)
    if isinstance(error, Unavailable):
        trace.event("workload.shim_lost", id=workload.id)
    status = shim.failure_exit(error)
    news = document.dump({"error": str(error), "exit": encode(status)}).decode()
    engine.state.change(workload.id, status="created", news=news)
