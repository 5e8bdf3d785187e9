"""The fast way of applying a layer, held against a plain one that thinks in a dictionary and knows no system call."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from mamushka.errors import Invalid
from mamushka.spec.tar import DIRECTORY, LINK, REGULAR, SYMLINK, Member
from mamushka.spec.tar_write import END, header, padding
from mamushka.storage.apply import apply
from tests.unit.test_apply import ME

Path = tuple[str, ...]


class Plain:
    """A layer as a dictionary from path to (kind, inode number or text); directories carry whether they are opaque."""

    def __init__(self) -> None:
        self.entries: dict[Path, tuple[str, object]] = {(): ("directory", False)}
        self.inodes = count()
        self.content: dict[int, bytes] = {}

    def add(self, member: Member, content: bytes) -> None:
        parent, base = self.place(member.name.decode())
        path = (*parent, base) if base else ()
        if base.startswith(".wh."):
            self.whiteout(parent, base)
        elif member.kind == DIRECTORY:
            self.make_directory(path)
        elif not base:
            raise Invalid("root")
        elif member.kind == REGULAR:
            self.clear(path)
            inode = next(self.inodes)
            self.content[inode] = content
            self.entries[path] = ("file", inode)
        elif member.kind == SYMLINK:
            self.clear(path)
            self.entries[path] = ("symlink", member.link.decode())
        else:
            self.hard_link(path, member)

    def whiteout(self, parent: Path, base: str) -> None:
        hidden = (*parent, base[4:])
        if base == ".wh..wh..opq":
            self.entries[parent] = ("directory", True)
        elif self.entries.get(hidden, ("",))[0] == "directory":
            self.entries[hidden] = ("directory", True)
        else:
            self.entries.setdefault(hidden, ("whiteout", None))

    def make_directory(self, path: Path) -> None:
        before = self.entries.get(path, ("", None))
        if before[0] != "directory":
            self.clear(path)
            self.entries[path] = ("directory", before[0] == "whiteout")

    def hard_link(self, path: Path, member: Member) -> None:
        parent, base = self.place(member.link.decode())
        source = (*parent, base) if base else ()
        if source == path:
            return
        found = self.entries.get(source, ("", None))
        if found[0] not in ("file", "symlink"):
            raise Invalid("link")
        self.clear(path)
        # The source may have been below what has just been replaced.
        if source not in self.entries:
            raise Invalid("link")
        self.entries[path] = found

    def clear(self, path: Path) -> None:
        for other in [other for other in self.entries if other[: len(path)] == path]:
            del self.entries[other]

    def place(self, name: str) -> tuple[Path, str]:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise Invalid("up")
        return (self.resolve(parts[:-1]), parts[-1]) if parts else ((), "")

    def resolve(self, parts: list[str]) -> Path:
        here: Path = ()
        for hops in range(10_000):
            if hops > 400:
                raise Invalid("circle")
            if not parts:
                return here
            part, parts = parts[0], parts[1:]
            if part == "..":
                here = here[:-1]
            elif part not in ("", "."):
                kind, meaning = self.entries.get((*here, part), ("", None))
                if kind == "symlink":
                    parts = [*str(meaning).split("/"), *parts]
                    here = () if str(meaning).startswith("/") else here
                elif kind == "file":
                    raise Invalid("below a file")
                else:
                    self.make_directory((*here, part))
                    here = (*here, part)
        raise AssertionError


def look(root: str) -> dict[Path, tuple[str, object]]:
    """What was really made, in the same words."""
    found: dict[Path, tuple[str, object]] = {}
    for directory, below, files in os.walk(root):
        own = os.path.relpath(directory, root)
        prefix = () if own == "." else tuple(own.split("/"))
        found[prefix] = ("directory", "user.overlay.opaque" in os.listxattr(directory))
        for name in [*files, *(name for name in below if os.path.islink(f"{directory}/{name}"))]:
            path = f"{directory}/{name}"
            seen = os.lstat(path)
            if stat.S_ISLNK(seen.st_mode):
                found[(*prefix, name)] = ("symlink", os.readlink(path))
            elif stat.S_ISCHR(seen.st_mode):
                found[(*prefix, name)] = ("whiteout", None)
            else:
                with open(path, "rb") as file:
                    found[(*prefix, name)] = ("file", (file.read(), seen.st_nlink))
    return found


parts = st.sampled_from(["a", "b", "c", ".wh.a", ".wh.b", ".wh..wh..opq", "."])
names = st.lists(parts, min_size=1, max_size=4).map("/".join)
targets = st.lists(st.sampled_from(["a", "b", "c", "..", ""]), min_size=1, max_size=3).map("/".join).filter(bool)
members = st.lists(
    st.tuples(names, st.sampled_from([REGULAR, REGULAR, DIRECTORY, DIRECTORY, SYMLINK, LINK]), targets), max_size=12
)


@settings(max_examples=200, deadline=None)
@given(members)
def test_the_fast_way_equals_the_plain_one(listed: list[tuple[str, bytes, str]]) -> None:
    plain, raw = Plain(), []
    try:
        for number, (name, kind, target) in enumerate(listed):
            content = b"%d" % number if kind == REGULAR else b""
            link = target.encode() if kind in (SYMLINK, LINK) else b""
            made = Member(name.encode(), kind, size=len(content), link=link, mode=0o755, **ME)
            raw.append(header(made) + content + padding(len(content)))
            plain.add(made, content)
        expected: object = plain.entries
    except Invalid:
        expected = None
    where = tempfile.mkdtemp()
    root = os.open(where, os.O_RDONLY)
    try:
        try:
            apply(root, [b"".join(raw) + END], user_xattr=True)
        except Invalid:
            assert expected is None
            return
        assert look(where) == in_the_same_words(plain) if expected is not None else False
    finally:
        os.close(root)
        shutil.rmtree(where)


def in_the_same_words(plain: Plain) -> dict[Path, tuple[str, object]]:
    uses: dict[object, int] = {}
    for kind, meaning in plain.entries.values():
        if kind == "file":
            uses[meaning] = uses.get(meaning, 0) + 1
    return {
        path: (
            kind,
            (plain.content[meaning], uses[meaning]) if isinstance(meaning, int) and kind == "file" else meaning,
        )
        for path, (kind, meaning) in plain.entries.items()
    }
