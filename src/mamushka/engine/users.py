"""Names of users and groups, looked up in the root that the workload will have.

The files are a stranger's: they are opened without following a link out of the root, and bounded.
"""

from __future__ import annotations

import os

from mamushka.errors import Invalid, Unsupported
from mamushka.linux.fd import open_in_root
from mamushka.linux.process import initial
from mamushka.spec.runtime import User
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A directory service's export may be large; a megabyte holds some 20,000 entries, and a start must not read more.
FILE_MAX = 1 << 20
ID_MAX = (1 << 32) - 2


@value
class Account:
    """Who the process is and where it is at home."""

    user: User
    home: str


def find(root: int, name: str, groups: Sequence[str] = ()) -> Account:
    """``user``, ``uid``, ``user:group``, … as Docker reads them, with further groups. Invalid for unknown names."""
    who, colon, group = name.partition(":")
    who = who or "0"
    if groups and not initial():
        _check_groups()
    account = _account(root, who)
    number = _number(who)
    if account is None and number is None:
        raise Invalid(
            f"unable to find user {who}: no matching entries in passwd file",
            hint="name a user of the image, or a numeric id",
        )
    login, uid, gid, home = account or ("", number or 0, 0, "/")
    lines = list(_lines(root, b"etc/group", 4)) if group or groups or account else []
    if colon and group:
        gid = _group(lines, group)
    member = () if group else (_id(line[2]) for line in lines if login and login in line[3].split(","))
    # The primary group too: a program that gives it up must not lose what denies that group (CVE-2022-36109).
    further = {gid, *member, *(_group(lines, item) for item in groups)}
    return Account(User(uid=uid, gid=gid, additional_gids=tuple(sorted(further))), home or "/")


def _check_groups() -> None:
    """Unsupported where further groups cannot be had, instead of leaving out what was asked for."""
    from mamushka.linux.users import may_set_groups

    if not may_set_groups():
        raise Unsupported(
            "further groups cannot be given to a workload of a user who has one id only",
            hint="grant subordinate ids in /etc/subuid and /etc/subgid: mamushka doctor",
        )


def _account(root: int, who: str) -> tuple[str, int, int, str] | None:
    """The entry of a name, or of a number: a name of digits goes before the number."""
    entry = _entry(list(_lines(root, b"etc/passwd", 7)), who)
    return (entry[0], _id(entry[2]), _id(entry[3]), entry[5]) if entry else None


def _entry(entries: list[list[str]], who: str) -> list[str] | None:
    """By name, else by number, however many zeros lead it: 033 is 33, in that user's group and not in root's."""
    for entry in entries:
        if entry[0] == who:
            return entry
    number = _digits(who)
    return next((entry for entry in entries if number and _digits(entry[2]) == number), None)


def _digits(text: str) -> str:
    return (text.lstrip("0") or "0") if text.isascii() and text.isdecimal() else ""


def _group(lines: list[list[str]], name: str) -> int:
    entry = _entry(lines, name)
    if entry:
        return _id(entry[2])
    number = _number(name)
    if number is None:
        raise Invalid(
            f"unable to find group {name}: no matching entries in group file",
            hint="name a group of the image, or a numeric id",
        )
    return number


def _number(text: str) -> int | None:
    return _id(text) if text.isascii() and text.isdecimal() else None


def _id(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= ID_MAX):
        raise Invalid(f"{text!r} is no user or group id", hint=f"ids are numbers from 0 to {ID_MAX}")
    return int(text)


def _lines(root: int, path: bytes, fields: int) -> Iterator[list[str]]:
    """The well-formed lines of a file like /etc/passwd, split; none when the file is not there."""
    try:
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)  # a fifo must not hold up the start
    except OSError:
        return
    try:
        raw = os.read(fd, FILE_MAX)
    except OSError:
        return
    finally:
        os.close(fd)
    for line in raw.decode("utf-8", "surrogateescape").split("\n"):
        parts = line.split(":")
        if len(parts) >= fields and parts[0] and parts[2].isdecimal():
            yield parts
