"""Files of a running machine's, for whoever asks its monitor: copied out of it and into it, listed, removed.

A question names an action, a path, and where that begins: at the container's root, with all that is mounted there, or
at a directory of the guest's own. A tree travels over a pipe of the caller's, as the guest sends or takes it
(agent/tree.py): the monitor passes bytes on and looks at none.
"""

from __future__ import annotations

import os

from mamushka.errors import Conflict, Invalid, NotFound
from mamushka.machine.agent import words
from mamushka.machine.inside import MAIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.machine.agent import Agent
    from mamushka.machine.agent.protocol import Fields

PACK, UNPACK, LIST, REMOVE = "pack", "unpack", "list", "remove"


def serve(agent: Agent, question: dict[str, Any]) -> Any:
    """Do what is asked for, in a thread that may wait; the descriptors of the question are closed."""
    descriptors = question.get("descriptors") or []
    try:
        action, path, root = question.get("action"), str(question.get("path", "")), str(question.get("root", ""))
        container = 0 if root else MAIN
        if action in (PACK, UNPACK) and len(descriptors) != 1:
            raise Invalid(f"{action} takes one pipe")
        if action == PACK:
            agent.pack(path, descriptors[0], container, root=root, content=question.get("content") is not False)
        elif action == UNPACK:
            agent.unpack(path, descriptors[0], container, root=root)
        elif action == LIST:
            return [_told(item) for item in agent.list_files(path, container, root=root)]
        elif action == REMOVE:
            agent.remove(path, container, root=root, recursive=question.get("recursive") is True)
        else:
            raise NotFound(f"nothing is called {action!r} about files")
        return action
    except (IsADirectoryError, FileExistsError) as error:
        raise Conflict(f"cannot {question.get('action')} {error.filename}: {error.strerror}") from error
    except NotADirectoryError as error:
        raise Conflict(f"not a directory: {error.filename!r}") from error
    finally:
        for fd in descriptors:
            os.close(fd)


def _told(item: Fields) -> dict[str, Any]:
    return {
        "name": item.text(words.K_NAME),
        "size": item.number(words.K_SIZE),
        "mode": item.number(words.K_MODE),
        "mtime": item.number(words.K_MTIME),
        "link": (item.get(words.K_SOURCE) or b"").decode("utf-8", "surrogateescape"),
    }
