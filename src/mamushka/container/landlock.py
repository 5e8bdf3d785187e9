"""A further wall that the kernel keeps for one container: rights on files, ports and neighbours, by Landlock.

The annotation ``org.mamushka.landlock`` asks for it, on the bundle of any engine. Its value is a list of items, with
commas or spaces between them, or a JSON document in the words of the landlock project's own configuration files:

    ro | rw                      the whole root: read and execute, or everything
    RIGHTS:PATH                  what is allowed at and below a path; rights are joined by +
    connect:PORTS, bind:PORTS    TCP ports, 443 or 8000-8010; none allows none
    scope:abstract_unix_socket, scope:signal
    handled:RIGHTS               deny only these where no rule allows them; else every right on files is denied
    abi:N                        deny only what Landlock's version N knew; older kernels know less
    log:new_exec_on …            what the kernel's audit log is told
    follow                       rules may be reached by symbolic links

Rights have the kernel's names (execute, write_file, …, ioctl_dev), or stand for several: ro and rx, rw, read, write,
make, remove, and v5.all, v5.read_execute, v5.read_write. What is not handled is not restricted.

Nothing is weakened in silence: what this host's kernel cannot restrict is refused, and so is a path that is not there.
The image is a stranger's, so a symbolic link in a rule's path would let it choose what the rule is for: such a path is
refused, unless ``follow`` is said, and then resolved in the container's own root.

Where it stands: after the hooks, which are the caller's, and before everything in ``privileges``. A process may
restrict itself while it has CAP_SYS_ADMIN or once no_new_privs is set; paths are found with the rights of root; a
limit of descriptors could forbid to open them, a system call filter the calls themselves. None of what follows opens
a file, mounts, or signals others, so the restriction hinders nothing but the program.
"""

from __future__ import annotations

import os

from mamushka.container.operation import LANDLOCK, Inside
from mamushka.container.rootfs import MODE, S_IFDIR, S_IFMT, look
from mamushka.errors import Invalid, Unsupported
from mamushka.linux import landlock
from mamushka.linux.abi import pack, sizeof
from mamushka.linux.fd import AT_FDCWD, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, open_how
from mamushka.linux.landlock import (
    ABI_MAX,
    FILE_RIGHTS,
    FS,
    LANDLOCK_RULE_NET_PORT,
    LANDLOCK_RULE_PATH_BENEATH,
    LOG,
    NET,
    SCOPE,
    landlock_net_port_attr,
    landlock_path_beneath_attr,
    landlock_ruleset_attr,
)
from mamushka.linux.process import PR_SET_NO_NEW_PRIVS
from mamushka.linux.script import Label, Variable
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from mamushka.linux.script import Script

# Each rule is a few calls of the process that becomes the container; nobody writes so many by hand.
_RULES_MAX = 1024
_PORT_MAX = 65535
_PARENT_FD = 8  # where a landlock_path_beneath_attr has it


def _all(abi: int) -> int:
    return sum(bit for bit, since in FS.values() if since <= abi)


def _some(*names: str) -> int:
    return sum(FS[name][0] for name in names)


_READ, _MAKE = _some("read_file", "read_dir"), tuple(name for name in FS if name.startswith("make_"))
_SEVERAL = {
    "ro": _READ | _some("execute"),
    "rx": _READ | _some("execute"),
    "rw": _all(ABI_MAX),
    "read": _READ,
    "write": _some("write_file", "truncate"),
    "make": _some(*_MAKE),
    "remove": _some("remove_file", "remove_dir"),
    **{f"v{abi}.all": _all(abi) for abi in range(1, ABI_MAX + 1)},
    **{f"v{abi}.read_execute": _READ | _some("execute") for abi in range(1, ABI_MAX + 1)},
    **{f"v{abi}.read_write": _all(abi) & ~_some("execute") for abi in range(1, ABI_MAX + 1)},
}
_PORT_WORDS = {"connect": "connect_tcp", "bind": "bind_tcp", **{name: name for name in NET}}


@value
class PathRule:
    """What is allowed at and below a path."""

    path: str
    named: int  # rights that were named one by one: the kernel judges whether they make sense there
    implied: int  # by a word for several: of these only files' rights go to what is no directory
    text: str


@value
class PortRule:
    """What is allowed with a port."""

    port: int
    access: int


@value
class Policy:
    """One container's ruleset; bits are the kernel's."""

    handled_fs: int = 0
    handled_net: int = 0
    scoped: int = 0
    flags: int = 0
    paths: tuple[PathRule, ...] = ()
    ports: tuple[PortRule, ...] = ()
    follow: bool = False

    def __post_init__(self) -> None:
        if not (self.handled_fs or self.handled_net or self.scoped):
            raise Invalid("this Landlock policy restricts nothing", hint="for example ro, or rx:/usr,rw:/data")
        if len(self.paths) + len(self.ports) > _RULES_MAX:
            raise Invalid(
                f"a Landlock policy of {len(self.paths) + len(self.ports)} rules", hint=f"{_RULES_MAX} at most"
            )
        for rule in self.paths:
            _check_path(rule, self.handled_fs)
        for port in self.ports:
            if port.access & ~self.handled_net:
                raise Invalid(f"a Landlock rule allows with port {port.port} what the policy does not handle")

    def needs(self) -> list[tuple[int, str]]:
        """What it restricts: (the ABI that brought it, its name)."""
        asked = ((self.handled_fs, FS), (self.handled_net, NET), (self.scoped, SCOPE), (self.flags, LOG))
        return [(abi, name) for bits, table in asked for name, (bit, abi) in table.items() if bits & bit]


def _check_path(rule: PathRule, handled: int) -> None:
    if not rule.path.startswith("/") or "\0" in rule.path or ".." in rule.path.split("/"):
        raise Invalid(f"the Landlock rule {rule.text!r} needs an absolute path without ..", hint="for example ro:/usr")
    lost = [name for name, (bit, _) in FS.items() if rule.named & ~handled & bit]
    if lost:
        raise Invalid(f"the Landlock rule {rule.text!r} allows {lost[0]}, which the policy does not handle")
    if not (rule.named | rule.implied) & handled:
        raise Invalid(f"the Landlock rule {rule.text!r} allows nothing that the policy handles")


def of(text: str) -> Policy:
    """The annotation's policy. Invalid where it means nothing, Unsupported where this host's kernel cannot keep it."""
    policy = parse(text)
    require(policy)
    return policy


def require(policy: Policy) -> None:
    """Unsupported where the kernel cannot do all of it."""
    needs = policy.needs()
    highest, found = max(needs)[0], landlock.abi()
    if found >= highest:
        return
    if not found:
        raise Unsupported(
            "cannot restrict by Landlock: this kernel has none", hint="boot with lsm=landlock,…; Linux 5.13 or later"
        )
    lacking = ", ".join(f"{name} (ABI {abi})" for abi, name in needs if abi > found)
    older = all(name in FS for abi, name in needs if abi > found)
    hint = f"abi:{found} restricts only what this kernel can" if older else "leave it out, or boot a newer kernel"
    raise Unsupported(f"cannot restrict by Landlock: {lacking} is beyond this kernel, which has ABI {found}", hint=hint)


def parse(text: str) -> Policy:
    """The annotation's value; Invalid for any other text."""
    if text.lstrip().startswith("{"):
        return _parse_document(text)
    found: dict[str, Any] = {"paths": [], "ports": [], "scoped": 0, "flags": 0, "handled_net": 0, "handled_fs": 0}
    for item in (item for part in text.split(",") for item in part.split() or [""]):
        _parse_item(item, found)
    if found["paths"] and not found["handled_fs"]:
        found["handled_fs"] = _all(found.get("abi", ABI_MAX))
    found.pop("abi", None)
    return _policy(found)


def _policy(found: dict[str, Any]) -> Policy:
    return Policy(**{**found, "paths": tuple(found["paths"]), "ports": tuple(found["ports"])})


def _parse_item(item: str, found: dict[str, Any]) -> None:
    word, colon, rest = item.partition(":")
    words = word.split("+")
    if item in ("ro", "rw"):
        found["paths"].append(PathRule("/", 0, _SEVERAL[item], item))
    elif item == "follow":
        found["follow"] = True
    elif not colon or not rest:
        raise Invalid(f"{item!r} is not an item of a Landlock policy", hint="ro, rw, RIGHTS:PATH, connect:PORT, …")
    elif word == "scope":
        found["scoped"] |= _bits(rest.split("+"), SCOPE)
    elif word == "log":
        found["flags"] |= _bits([f"log_{name}" for name in rest.split("+")], LOG)
    elif word == "handled":
        found["handled_fs"] |= sum(_rights(rest.split("+")))
    elif word == "abi":
        found["abi"] = _number(rest, 1, ABI_MAX, "an ABI of Landlock")
    elif words[0] in _PORT_WORDS:
        access = _bits([_PORT_WORDS.get(name, name) for name in words], NET)
        found["handled_net"] |= access
        found["ports"] += [PortRule(port, access) for port in _ports(rest)]
    else:
        found["paths"].append(PathRule(rest, *_rights(words), item))


def _ports(text: str) -> Iterable[int]:
    if text == "none":
        return ()
    first, _, last = text.partition("-")
    start = _number(first, 0, _PORT_MAX, "a port")
    end = _number(last, start, _PORT_MAX, "a later port") if last else start
    if end - start >= _RULES_MAX:
        raise Invalid(f"the ports {text} are more than {_RULES_MAX} rules of Landlock")
    return range(start, end + 1)


def _number(text: str, lowest: int, highest: int, what: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or not lowest <= int(text) <= highest:
        raise Invalid(f"{text!r} is not {what}: {lowest} to {highest}")
    return int(text)


def _rights(words: Sequence[Any]) -> tuple[int, int]:
    """(rights named one by one, rights of words for several that were not named)."""
    named = _bits([word for word in words if word not in _SEVERAL], FS)
    implied = 0
    for word in words:
        implied |= _SEVERAL.get(word, 0)
    return named, implied & ~named


def _bits(words: Iterable[Any], table: Mapping[str, tuple[int, int]]) -> int:
    found = 0
    for word in words:
        if word not in table:
            raise Invalid(f"{word!r} is no right of Landlock's", hint=f"{', '.join(table)}; landlock(7) explains them")
        found |= table[word][0]
    return found


_RULESET = {"handledAccessFs", "handledAccessNet", "scoped"}


def _parse_document(text: str) -> Policy:
    from mamushka import document

    whole = _members(document.parse(text.encode(), "the Landlock policy"), _RULESETS)
    found: dict[str, Any] = {"paths": [], "ports": [], "scoped": 0, "handled_net": 0, "handled_fs": 0}
    for entry in _list(whole, "ruleset"):
        ruleset = _members(entry, _RULESET)
        found["handled_fs"] |= sum(_rights(_words(ruleset, "handledAccessFs")))
        found["handled_net"] |= _bits(_words(ruleset, "handledAccessNet"), NET)
        found["scoped"] |= _bits(_words(ruleset, "scoped"), SCOPE)
    for entry in _list(whole, "pathBeneath"):
        rule = _members(entry, {"allowedAccess", "parent"})
        rights = _rights(_words(rule, "allowedAccess"))
        found["paths"] += [PathRule(path, *rights, path) for path in _words(rule, "parent")]
    for entry in _list(whole, "netPort"):
        rule = _members(entry, {"allowedAccess", "port"})
        access = _bits(_words(rule, "allowedAccess"), NET)
        found["ports"] += [PortRule(_number(str(port), 0, _PORT_MAX, "a port"), access) for port in _list(rule, "port")]
    found["flags"] = _bits(_words(whole, "flags"), LOG)
    found["follow"] = whole.get("follow") is True
    return _policy(found)


_RULESETS = {"ruleset", "pathBeneath", "netPort", "flags", "follow"}


def _members(entry: Any, known: set[str]) -> dict[str, Any]:
    if not isinstance(entry, dict) or not entry.keys() <= known:
        raise Invalid("this part of a Landlock policy is not known", hint=f"an object of {', '.join(sorted(known))}")
    return entry


def _list(entry: dict[str, Any], name: str) -> list[Any]:
    items = entry.get(name, [])
    if not isinstance(items, list):
        raise Invalid(f"{name} of a Landlock policy is a list")
    return items


def _words(entry: dict[str, Any], name: str) -> list[str]:
    items = _list(entry, name)
    if not all(isinstance(item, str) for item in items):
        raise Invalid(f"{name} of a Landlock policy is a list of strings")
    return items


def permit(text: str, path: str) -> str:
    """The policy's text with a further rule: a program of the caller's own may be executed, where files are handled."""
    if not parse(text).handled_fs & _SEVERAL["rx"]:
        return text
    if not text.lstrip().startswith("{"):
        return f"{text},rx:{path}"
    from mamushka import document

    whole = document.parse(text.encode(), "the Landlock policy")
    rule = {"allowedAccess": ["rx"], "parent": [path]}
    return document.dump({**whole, "pathBeneath": [*whole.get("pathBeneath", []), rule]}).decode()


class Restrict(Inside):
    """Make the ruleset, from paths as the program would find them, and put it on the process."""

    __slots__ = ("no_new_privileges", "policy")
    about = LANDLOCK
    settled = True

    def __init__(self, policy: Policy, *, no_new_privileges: bool) -> None:
        self.policy, self.no_new_privileges = policy, no_new_privileges

    def describe(self) -> str:
        policy = self.policy
        words = [name for _, name in policy.needs() if name not in FS]
        rules = [rule.text for rule in policy.paths] or (["no file"] if policy.handled_fs else [])
        return "restrict by Landlock: " + ", ".join([*rules, *words, *(f"port {rule.port}" for rule in policy.ports)])

    def write(self, script: Script) -> None:
        policy, ruleset = self.policy, script.variable()
        handled = landlock_ruleset_attr(
            handled_access_fs=policy.handled_fs, handled_access_net=policy.handled_net, scoped=policy.scoped
        )
        script.call("landlock_create_ruleset", handled, sizeof(handled), 0, into=ruleset)
        for rule in policy.paths:
            self._allow_path(script, ruleset, rule)
        for port in policy.ports:
            allowed = landlock_net_port_attr(allowed_access=port.access, port=port.port)
            script.call("landlock_add_rule", ruleset, LANDLOCK_RULE_NET_PORT, allowed, 0, about=f": port {port.port}")
        if self.no_new_privileges:
            script.call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        script.call("landlock_restrict_self", ruleset, policy.flags)
        script.call("close", ruleset)

    def _allow_path(self, script: Script, ruleset: Variable, rule: PathRule) -> None:
        path = os.fsencode(rule.path)
        access = (rule.named | rule.implied) & self.policy.handled_fs
        at = script.copy(pack(landlock_path_beneath_attr(allowed_access=access, parent_fd=-1)))
        parent, file, ready = Variable(at + _PARENT_FD), Label(), Label()
        resolve = RESOLVE_NO_MAGICLINKS | (0 if self.policy.follow else RESOLVE_NO_SYMLINKS)
        how = open_how(flags=os.O_PATH | os.O_CLOEXEC, resolve=resolve)
        script.call("openat2", AT_FDCWD, path, how, sizeof(how), into=parent, about=path)
        look(script, parent, b"")
        script.compare(MODE, S_IFMT, S_IFDIR, file)
        script.jump(ready)
        script.mark(file)
        # The lower half of the rights, and there are none in the upper one.
        script.store(access & (rule.named | FILE_RIGHTS), Variable(at))
        script.mark(ready)
        script.call("landlock_add_rule", ruleset, LANDLOCK_RULE_PATH_BENEATH, at, 0, about=path)
        script.call("close", parent)
