"""What the engine knows, in one SQLite database, and how it comes back when that is lost.

Write-ahead logging lets readers and one writer work at once. ``synchronous=OFF``: no commit waits for the disk,
so a start costs no fsync; a process may be killed at any instant without harm, because the kernel has the pages.
Only a power cut can tear the database, and then it is rebuilt: each workload's directory holds what it was asked
to be (``workload.json``) and what became of it (``status.json``).

A shim never opens the database. SQLite must not be carried across a fork, and an idle shim should own no memory
for it; it writes ``status.json`` and a file of news, and whoever looks next takes the news over (gc.settle).

Rooms of the engine keep their own tables here: ``execute`` with ``transaction``, and ``schema`` at first use.
"""

from __future__ import annotations

import os
import sys
import time

from mamushka import document
from mamushka.engine.ids import is_hex
from mamushka.errors import Conflict, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from sqlite3 import Connection, Cursor
    from typing import Any

VERSION = 1
# A writer holds the lock for well under a millisecond; whoever waits this long meets a stopped process.
BUSY_TIMEOUT = 20.0
_SQLITE_BUSY = 5  # sqlite.org/rescode.html; further bits of a code say why
# Events are a window on the recent past, as Docker's are; so many fit in a megabyte or two.
EVENTS_MAX = 8192

_SCHEMA = """
create table if not exists workloads (
    id text primary key, name text not null unique, status text not null, created real not null,
    record text not null, news text not null default '{}') without rowid;
create index if not exists workloads_by_status on workloads (status);
create table if not exists events (
    number integer primary key autoincrement, time real not null, kind text not null, action text not null,
    id text not null, attributes text not null);
"""


class Row:
    """One workload's row: what it was asked to be (record) and what became of it (news), both JSON."""

    __slots__ = ("created", "id", "name", "news", "record", "status")

    def __init__(self, id: str, name: str, status: str, created: float, record: str, news: str) -> None:
        self.id, self.name, self.status, self.created, self.record, self.news = id, name, status, created, record, news


class Transaction:
    """One unit of change; entered again inside itself it is the same one."""

    def __init__(self, state: State) -> None:
        self._state = state

    def __enter__(self) -> State:
        state = self._state
        state.lock.acquire()
        if state.depth == 0:
            try:
                state.connection.execute("begin immediate")
            except BaseException:
                state.lock.release()
                raise
        state.depth += 1
        return state

    def __exit__(self, kind: object, *_: object) -> None:
        state = self._state
        state.depth -= 1
        try:
            if state.depth == 0:
                state.connection.execute("rollback" if kind else "commit")
        finally:
            state.lock.release()


class State:
    """The database under a data root; opened at first use, one connection for all threads of a process."""

    def __init__(self, path: str, rebuild: Callable[[State], None] | None = None) -> None:
        from _thread import RLock

        self.path = path
        self.depth = 0
        self.lock = RLock()
        self._rebuild = rebuild
        self._connection: Connection | None = None
        self._schemas: set[str] = set()

    @property
    def connection(self) -> Connection:
        """The open connection."""
        if self._connection is None:
            self._connection = self._open()
        return self._connection

    def open(self) -> None:
        """Open it now."""
        assert self.connection

    def close(self) -> None:
        """Let go of the database; the next use opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def transaction(self) -> Transaction:
        """``with state.transaction():`` all of it happens, or nothing."""
        return Transaction(self)

    def execute(self, statement: str, values: Sequence[object] = ()) -> Cursor:
        """One statement; outside a transaction it is one of its own."""
        with self.lock:
            return self.connection.execute(statement, values)

    def schema(self, statements: str) -> None:
        """Make a room's tables (``create … if not exists``) once per process."""
        with self.lock:
            if statements not in self._schemas:
                for statement in statements.split(";"):
                    self.connection.execute(statement)
                self._schemas.add(statements)

    def _open(self) -> Connection:
        _sqlite3 = driver()
        try:
            return self._connect_in_time()
        except _sqlite3.DatabaseError as error:
            if not _is_torn(error):
                raise
            os.replace(self.path, self.path + ".broken")
            for suffix in ("-wal", "-shm"):
                if os.path.exists(self.path + suffix):
                    os.unlink(self.path + suffix)
            return self._connect()

    def _connect_in_time(self) -> Connection:
        """Where several make the file at once, SQLite refuses the change to a write-ahead log without waiting."""
        deadline = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                return self._connect()
            except driver().OperationalError as error:
                if error.sqlite_errorcode & 0xFF != _SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.005)

    def _connect(self) -> Connection:
        connection: Connection = driver().connect(
            self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            connection.execute("pragma synchronous=off")
            (version,) = connection.execute("pragma user_version").fetchone()
            if version > VERSION:
                raise Conflict(
                    f"{self.path} was written by a newer mamushka: its schema is {version}, this one knows {VERSION}",
                    hint="use the newer version, or another --data-root",
                )
            if version < VERSION:
                self._create(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _create(self, connection: Connection) -> None:
        connection.execute("pragma journal_mode=wal")
        self._connection = connection
        try:
            with self.transaction():
                if connection.execute("pragma user_version").fetchone()[0] < VERSION:  # nobody was faster
                    for statement in _SCHEMA.split(";"):
                        connection.execute(statement)
                    if self._rebuild is not None:
                        self._rebuild(self)
                    connection.execute(f"pragma user_version={VERSION}")
        finally:
            self._connection = None

    # workloads

    def insert(self, row: Row) -> None:
        """Add a workload; Conflict when its name is taken."""
        taken = self.execute("select id from workloads where name=?", (row.name,)).fetchone()
        if taken is not None:
            raise Conflict(
                f'the container name "/{row.name}" is already in use by container "{taken[0]}"',
                hint=f"remove it with `mamushka rm {row.name}`, or choose another name",
            )
        self.execute(
            "insert into workloads values (?,?,?,?,?,?)",
            (row.id, row.name, row.status, row.created, row.record, row.news),
        )

    def find(self, identifier: str) -> Row:
        """By whole id, name, or unique prefix of an id. NotFound, or Conflict where the prefix is ambiguous."""
        name = identifier.removeprefix("/")
        rows = self._rows("where id=? or name=? order by id=? desc limit 1", (name, name, name))
        if not rows and is_hex(name):
            rows = self._rows("where id >= ? and id < ? limit 2", (name, name + "g"))
        if not rows:
            raise NotFound(f"no such container: {identifier}", hint="`mamushka ps --all` lists them")
        if len(rows) > 1:
            raise Conflict(f"the id prefix {identifier} is ambiguous", hint="give more digits of it")
        return rows[0]

    def rows(self, *statuses: str) -> list[Row]:
        """All workloads, or those in one of the states; newest first."""
        where = f"where status in ({','.join('?' * len(statuses))})" if statuses else ""
        return self._rows(f"{where} order by created desc", statuses)

    def ids(self) -> set[str]:
        """All workloads' ids."""
        return {id for (id,) in self.execute("select id from workloads")}

    def _rows(self, tail: str, values: Sequence[object]) -> list[Row]:
        cursor = self.execute(f"select id, name, status, created, record, news from workloads {tail}", values)
        return [Row(*row) for row in cursor]

    def change(self, id: str, **columns: str) -> bool:
        """Set columns of a workload; False when it is gone."""
        assignments = ", ".join(f"{column}=?" for column in columns)
        cursor = self.execute(f"update workloads set {assignments} where id=?", (*columns.values(), id))
        return cursor.rowcount > 0

    def delete(self, id: str) -> bool:
        """Forget a workload; False when it was forgotten already."""
        return self.execute("delete from workloads where id=?", (id,)).rowcount > 0

    # events

    def add_event(self, time: float, kind: str, action: str, id: str, attributes: dict[str, Any]) -> None:
        """Append to the events, and forget the oldest now and then."""
        cursor = self.execute(
            "insert into events (time, kind, action, id, attributes) values (?,?,?,?,?)",
            (time, kind, action, id, document.dump(attributes).decode()),
        )
        number = cursor.lastrowid or 0
        if number % 256 == 0:
            self.execute("delete from events where number <= ?", (number - EVENTS_MAX,))


def _is_torn(error: Exception) -> bool:
    """Whether SQLite found the file itself to be damaged, not merely busy or out of reach."""
    torn = {11, 26}  # SQLITE_CORRUPT, SQLITE_NOTADB
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in torn


def driver() -> Any:
    """The extension behind sqlite3, which around it is for dates, and imports datetime and collections to that end.

    Of functools the extension wants lru_cache, and that module brings collections and more, 4 ms in front of every
    command. Where nobody has imported it, its C half stands in: threads, whose module imports it, are not there yet.
    """
    if "_sqlite3" not in sys.modules and "functools" not in sys.modules:
        sys.modules["functools"] = _half_of_functools()
        try:
            import _sqlite3
        finally:
            del sys.modules["functools"]
    import _sqlite3

    return _sqlite3


def _half_of_functools() -> Any:
    from _functools import _lru_cache_wrapper  # type: ignore[import-not-found]

    def lru_cache(maxsize: int) -> Callable[[Any], Any]:
        return lambda function: _lru_cache_wrapper(function, maxsize, False, tuple)

    half = type(sys)("functools")
    half.lru_cache = lru_cache  # type: ignore[attr-defined]
    return half
