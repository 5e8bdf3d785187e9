"""The small process that every running workload has: it owns its streams, its log and its exit status.

It is forked from whoever starts the workload and outlives it; the workload's first process is its child. It is ready
before the first instruction runs, so nothing is missed. It never opens the database (state.py says why): what happens
is written to the news directory, from where the next command that looks takes it over (gc.settle).

A shim that has nothing to do replaces itself by a one-page executable that waits in its place, and comes back when a
descriptor is ready (linux/sleeper.py). All that must survive this is in ``Post`` and in open descriptors.

When a shim is killed, its lock is free and its workload runs on: output waits in the pipes (launch.Ends), stop and
remove reach it through the runtime, and its exit status is recorded as unknown.
"""

from __future__ import annotations

import os
import sys

from mamushka.engine import frames, restart
from mamushka.engine.launch import Launch, launch
from mamushka.engine.logs import LogFile, LogOptions
from mamushka.engine.paths import CHECKPOINT_LOCK, CHECKPOINT_MEANT, read_json, write_json
from mamushka.engine.pump import Client, Pump
from mamushka.engine.records import decode, encode
from mamushka.engine.settings import Restart
from mamushka.engine.wires import GRACE, Wires, responder, silence, tidy
from mamushka.errors import MamushkaError
from mamushka.runtime import CannotExecute, CheckpointOptions, CommandNotFound, Exit
from mamushka.values import EMPTY, replace, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    from mamushka.network.carrier import Carrier
    from mamushka.network.responder import Responder
    from mamushka.runtime import Runtime
    from mamushka.spec.runtime import Config

# Long enough that a workload which has just started and talks keeps its shim awake; each waking doubles it, since
# coming back costs an interpreter's start.
IDLE_MIN = 2.0
IDLE_MAX = 60.0


@value
class Post:
    """What a shim knows. Fields below ``restarts`` change while it serves."""

    launch: Launch
    directory: str  # the workload's own
    news: str  # where it tells what happened
    socket: str  # where it listens
    log_path: str = ""
    log: LogOptions | None = None
    remove: bool = False
    memory_limited: bool = False
    attributes: Mapping[str, str] = EMPTY  # of its events: name, image
    lock: int = -1
    network: int = -1  # the network namespace, kept while it serves
    users: int = -1  # the user namespace, likewise
    wires: Wires | None = None
    restart: Restart = Restart()
    restarts: int = 0
    started: float = 0.0
    pause: float = 0.0  # before the last restart
    naps: int = 0
    carrier: int = 0  # the pid of the program that carries its packets

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that stays open while it serves."""
        return (self.lock, self.network, self.users, *(self.wires.descriptors if self.wires else ()))


class Shim:
    """One workload's shim."""

    def __init__(self, post: Post, config: Config, runtime: Runtime, pump: Pump) -> None:
        self._post = post
        self._config = config
        self._runtime = runtime
        self._pump = pump
        self._events: list[tuple[float, str, dict[str, str]]] = []
        self._sleepless = False
        self._responder: Responder | None = None
        pump.names = self._answer_for_names
        self._respond()

    def _respond(self) -> None:
        """Answer for names, where a network has any."""
        self._responder = responder(self._post.wires) if self._post.wires else None
        if self._responder is not None:
            self._pump.further[self._responder.fileno()] = self._responder.ready

    def _answer_for_names(self, index: str, servers: tuple[str, ...]) -> bytes:
        """It has just entered its first network with names; what is said to who tells so."""
        try:
            if self._responder is None and self._post.wires is not None:
                from mamushka.network.responder import listen

                wires = replace(self._post.wires, resolver=listen(self._post.network), index=index, servers=servers)
                self._post = replace(self._post, wires=wires)
                self._respond()
        except (OSError, MamushkaError) as error:
            return frames.failed(error)
        return frames.plain(frames.DONE)

    def carry(self, carrier: Carrier) -> None:
        """Run the program that carries its packets; it ends with the workload, or with this process."""
        from mamushka.network import carrier as program

        self._post = replace(self._post, carrier=program.start(carrier, self._post.network))

    def start(self, root: int = -1) -> None:
        """Run the workload's program, on ``root`` where it is mounted already; raises what the runtime raises."""
        from time import time

        streams = launch(self._runtime, self._post.launch, self._config, root)
        started, now = streams.started, time()
        self._pump.adopt(
            started.pid,
            started.pidfd,
            started=now,
            outputs=streams.outputs,
            stdin=streams.stdin,
            console=streams.console,
        )
        # It goes on from a checkpoint once; a restart begins anew.
        if self._post.launch.restoring.memory >= 0:
            os.close(self._post.launch.restoring.memory)
        anew = replace(self._post.launch, state="", restoring=CheckpointOptions())
        self._post = replace(self._post, started=now, launch=anew)
        self._pump.tell(frames.started(started.pid, now))

    def serve(self) -> None:
        """Until the workload has ended for good."""
        while True:
            while not self._pump.run(idle=self._patience()):
                self._sleep()
            exit = self._ended()
            if not self._again(exit):
                break
        self._finish(exit)

    def abandon(self, error: BaseException) -> None:
        """The first start failed: say so and leave nothing."""
        self._clean()
        self._silence()
        self._pump.tell(frames.failed(error))
        self._pump.close()
        self._tidy()

    def _ended(self) -> Exit:
        exit = self._pump.exit
        assert exit is not None
        if self._post.memory_limited and self._runtime.stats(self._post.launch.id).oom_kills:
            exit = replace(exit, oom_killed=True)
            self._note("oom")
        self._note("die", exitCode=str(exit.status))
        self._clean()
        if self._pump.log is not None:
            from time import time_ns

            self._pump.log.flush(time_ns())
        return exit

    def _clean(self) -> None:
        self._runtime.delete(self._post.launch.id, force=True)

    def _again(self, exit: Exit) -> bool:
        """Start it again as its policy says; False when it stays ended."""
        from time import monotonic, time

        while True:
            pump, post = self._pump, self._post
            if pump.policy is not None:
                post = replace(post, restart=Restart(*pump.policy))
            if pump.quiet or not restart.again(post.restart, exit, post.restarts) or self._written_down():
                return False
            pause = restart.delay(post.pause, time() - post.started)
            self._post = replace(post, pause=pause, restarts=post.restarts + 1)
            self._tell("restarting", exit=exit)
            pump.rest()
            pump.run(until=monotonic() + pause)
            if pump.quiet:
                return False
            try:
                self.start()
            except (MamushkaError, OSError) as error:
                exit = failure_exit(error)
                self._post = replace(self._post, started=time())
                continue
            self._note("start")
            self._tell("running")
            return True

    def _written_down(self) -> bool:
        """Whether a checkpoint is being made with which it was to end."""
        from mamushka.linux.lock import held

        try:
            lock = os.open(f"{self._post.directory}/{CHECKPOINT_LOCK}", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return held(lock, byte=CHECKPOINT_MEANT)
        finally:
            os.close(lock)

    def _finish(self, exit: Exit) -> None:
        post = self._post
        self._silence()
        if post.remove:
            from mamushka.storage.snapshot import SnapshotStore

            SnapshotStore(os.path.dirname(post.directory)).remove(post.launch.id)
        self._tell("exited", exit=exit, removed=post.remove)
        os.unlink(post.socket)
        os.close(post.lock)  # whoever hears of the end may start it again at once
        self._pump.tell(frames.exit(exit))
        self._pump.linger()
        self._pump.close()
        self._tidy()

    def _silence(self) -> None:
        """The host no longer answers on its ports."""
        if self._post.wires:
            silence(self._post.wires)
        if self._post.carrier:
            from mamushka.network.carrier import stop

            stop(self._post.carrier)

    def _tidy(self) -> None:
        """Nobody waits any more."""
        from time import sleep

        if self._post.wires:
            sleep(GRACE)
            tidy(self._post.wires, self._post.network)

    def _note(self, action: str, **attributes: str) -> None:
        from time import time

        self._events.append((time(), action, {**self._post.attributes, **attributes}))

    def _tell(self, status: str, *, exit: Exit | None = None, removed: bool = False) -> None:
        from time import time, time_ns

        post = self._post
        item = {
            "status": status,
            "pid": self._pump.pid if status == "running" else 0,
            "started": post.started,
            "finished": time() if exit is not None else 0.0,
            "exit": encode(exit),
            "restarts": post.restarts,
            "removed": removed,
            "events": self._events,
        }
        if not removed:
            write_json(f"{post.directory}/status.json", item)
        write_json(f"{post.news}/{post.launch.id}.{time_ns():020}", item)
        self._events = []

    # sleeping

    def _patience(self) -> float | None:
        if self._sleepless:
            return None
        return float(min(IDLE_MIN * 2**self._post.naps, IDLE_MAX))

    def _sleep(self) -> None:
        """Become the sleeper; returns only where this machine or kernel has no place for it."""
        from mamushka.linux import sleeper
        from mamushka.spec.runtime import dump

        if self._responder is not None and not self._responder.idle:
            return
        self._sleepless = True
        pump, post = self._pump, self._post
        with open(f"{post.launch.bundle}/config.json", "wb") as file:
            file.write(dump(self._config))
        note = {
            "post": encode(replace(post, naps=post.naps + 1)),
            "listener": pump.listener,
            "pid": pump.pid,
            "pidfd": pump.pidfd,
            "outputs": [[fd, kind] for fd, kind in pump.outputs.items()],
            "stdin": pump.stdin,
            "console": pump.console,
            "quiet": pump.quiet,
            "policy": pump.policy,
            "clients": [[client.fd, client.flags] for client in pump.clients],
        }
        path = f"{post.directory}/sleep.json"
        write_json(path, note)
        resolver = post.wires.resolver if post.wires else ()
        wake = [*pump.outputs, pump.listener, pump.pidfd, *(client.fd for client in pump.clients), *resolver]
        for fd in (*wake, pump.stdin, pump.console, *post.descriptors):
            if fd >= 0:
                os.set_inheritable(fd, True)
        try:
            sleeper.sleep(sleeper.image(wake, wake_command(path), {}), "mamushka-shim")
        except (KeyError, OSError):
            pass


def wake_command(path: str) -> list[bytes]:
    """How a shim comes back: an isolated interpreter that reads what was written down before the sleep."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = "import sys; sys.path.insert(0, sys.argv[1]); from mamushka import startup; startup.use(); "
    code += "from mamushka.engine.shim import wake; wake(sys.argv[2])"
    return [os.fsencode(item) for item in (sys.executable, "-I", "-S", "-c", code, package, path)]


def wake(path: str) -> NoReturn:
    """Go on where ``_sleep`` left off; this is the process's whole program."""
    from mamushka.engine.runtimes import open_runtime
    from mamushka.spec.runtime import parse

    note: dict[str, Any] = read_json(path)
    post = decode(Post, note["post"])
    pump = Pump(listener=note["listener"], log=open_log(post))
    pump.adopt(
        note["pid"],
        note["pidfd"],
        started=post.started,
        outputs=dict(note["outputs"]),
        stdin=note["stdin"],
        console=note["console"],
    )
    pump.quiet = note["quiet"]
    pump.policy = note["policy"] and tuple(note["policy"])
    pump.clients = [Client(fd, flags) for fd, flags in note["clients"]]
    for fd in (*pump.outputs, pump.listener, pump.pidfd, pump.stdin, pump.console, *post.descriptors):
        if fd >= 0:
            os.set_inheritable(fd, False)
    with open(f"{post.launch.bundle}/config.json", "rb") as file:
        config = parse(file.read())
    settle_in()
    Shim(post, config, open_runtime(post.launch.runtime, post.launch.containers, post.launch.made), pump).serve()
    os._exit(0)


def open_log(post: Post) -> LogFile | None:
    """The log that the post asks for."""
    return None if post.log is None else LogFile(post.log_path, post.log)


def failure_exit(error: BaseException) -> Exit:
    """What a shell would report for a program that could not be started."""
    return Exit(code=127 if isinstance(error, CommandNotFound) else 126 if isinstance(error, CannotExecute) else 128)


def settle_in() -> None:
    """Let neither a terminal's signals nor a directory of the starter's matter."""
    import _signal as signal  # type: ignore[import-not-found]  # without the enumerations, 5 ms

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGTTIN, signal.SIGTTOU):
        # A function, not SIG_IGN: what is ignored stays ignored in the programs that are executed.
        signal.signal(number, _ignore)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.chdir("/")
    os.umask(0o022)


def _ignore(*_: object) -> None:
    pass


def fork(main: Callable[[], None], keep: tuple[int, ...]) -> None:
    """Run ``main`` in a process of its own that belongs to nobody, with only ``keep`` open.

    Two forks, so that the caller has no child to reap. The collector's generations are frozen before, so that a
    collection in the shim does not copy the pages it shares.
    """
    import gc

    from mamushka.linux.fd import close_others

    gc.freeze()
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        gc.unfreeze()
        return
    status = 1
    try:
        os.setsid()
        if os.fork() == 0:
            close_others(keep)
            settle_in()
            main()
        status = 0
    finally:
        os._exit(status)  # no exit handler, no buffer and no destructor of the starter's may run here
