"""What happened to workloads, images, networks and volumes, in order."""

from __future__ import annotations

import os
import select

from mamushka.errors import Invalid
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mamushka.engine.engine import Engine

_FILTERS = ("container", "event", "image", "label", "network", "type", "volume")


@value
class Event:
    """One thing that happened. ``attributes`` holds name, image, exitCode, signal … as they apply."""

    time: float  # seconds since the epoch, to the nanosecond as far as a float goes
    kind: str  # workload | image | network | volume
    action: str  # create start die stop kill oom pause unpause destroy rename exec_start … pull push tag untag delete
    id: str
    attributes: Mapping[str, str] = EMPTY


class Watch:
    """Tells when the database or the news may have changed; a context manager."""

    def __init__(self, directory: str, news: str) -> None:
        from mamushka.linux.inotify import IN_CREATE, IN_DELETE, IN_MODIFY, IN_MOVED_TO, watch

        self._fds = [watch(directory, IN_MODIFY), watch(news, IN_CREATE | IN_DELETE | IN_MOVED_TO)]

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)

    def wait(self, timeout: float | None, *further: int) -> bool:
        """Sleep until something may have changed or one of ``further`` is readable; False after ``timeout`` seconds."""
        from mamushka.linux.inotify import drain

        poll = select.poll()
        for fd in (*self._fds, *further):
            poll.register(fd, select.POLLIN)
        ready = poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
        for fd, _ in ready:
            if fd in self._fds:
                drain(fd)
        return bool(ready)


def events(engine: Engine, since: float, until: float, filters: Mapping[str, Sequence[str]] | None) -> Iterator[Event]:
    """See Engine.events."""
    from time import time

    wanted = _matcher(filters or {})
    with engine.changes_watch() as watch:
        last = _number_before(engine, since)
        while True:
            engine.settle()
            rows = engine.state.execute(
                "select number, time, kind, action, id, attributes from events where number>? order by number", (last,)
            ).fetchall()
            for number, *fields in rows:
                last = number
                event = _event(*fields)
                if event.time >= since and (not until or event.time <= until) and wanted(event):
                    yield event
            left = until - time() if until else None
            if (left is not None and left <= 0) or not watch.wait(left):
                return


def _number_before(engine: Engine, since: float) -> int:
    """The number of the last event that is not wanted: without ``since`` the last of all."""
    engine.settle()
    where, values = ("where time<?", (since,)) if since else ("", ())
    (number,) = engine.state.execute(f"select max(number) from events {where}", values).fetchone()
    return number or 0


def _event(time: float, kind: str, action: str, id: str, attributes: str) -> Event:
    from mamushka import document

    return Event(time, kind, action, id, document.parse(attributes.encode(), "an event"))


def _matcher(filters: Mapping[str, Sequence[str]]) -> Callable[[Event], bool]:
    for name in filters:
        if name not in _FILTERS:
            raise Invalid(f"invalid filter '{name}'", hint=f"one of {', '.join(_FILTERS)}")
    return lambda event: all(any(_matches(event, name, text) for text in texts) for name, texts in filters.items())


def _matches(event: Event, name: str, text: str) -> bool:
    attributes = event.attributes
    if name == "type":
        return event.kind == ("workload" if text == "container" else text)
    if name == "event":
        return event.action.partition(":")[0] == text
    if name == "image":
        return text in (attributes.get("image"), event.id if event.kind == "image" else None)
    if name == "label":
        key, equals, content = text.partition("=")
        return key in attributes and (not equals or attributes[key] == content)
    kind = "workload" if name == "container" else name
    return event.kind == kind and (text == attributes.get("name") or event.id.startswith(text))
