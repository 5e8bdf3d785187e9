"""A container's scope as systemd is told of it: its name, its place, its properties. No I/O.

Limits are told to systemd too, though their files are written directly afterwards: it writes the files of its units
whenever it likes, and would write what it believes. What it has no property for only the file has.
systemd.resource-control(5); org.freedesktop.systemd1(5).
"""

from __future__ import annotations

from mamushka.container.affinity import cpu_list
from mamushka.container.cgroups import v2
from mamushka.errors import Invalid
from mamushka.spec.dbus import Variant
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from mamushka.spec.runtime import CPU, Memory, Resources

    Properties = dict[str, Variant]

INFINITY = (1 << 64) - 1
ANNOTATION = "org.systemd.property."
# Decided by whoever makes the scope; an annotation that changed one would lose the container.
_OURS = frozenset(("PIDs", "PIDFDs", "Slice", "Delegate", "DefaultDependencies", "Scope"))
# systemd.unit(5): "a-z", "A-Z", "0-9", and these; a name has at most 255 letters with its suffix.
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@")
_NAME_MAX = 255
_SLICE, _SCOPE = ".slice", ".scope"
# The kernel's own default, which a quota without a period means. cgroup-v2.rst, cpu.max
_PERIOD_US = 100_000
# Versions of systemd that know a property first.
_CPU_PERIOD, _CPUSET, _IDLE = 242, 244, 252


@value
class Name:
    """Where a bundle's ``linux.cgroupsPath`` puts its scope."""

    slice: str
    unit: str

    @property
    def path(self) -> str:
        """The cgroup, below the manager's own: a-b.slice lies in a.slice."""
        words = self.slice.removesuffix(_SLICE).split("-") if self.slice != "-.slice" else []
        slices = ("-".join(words[: count + 1]) + _SLICE for count in range(len(words)))
        return "/" + "/".join((*slices, self.unit))


def name(cgroups_path: str, id: str, *, user: bool) -> Name:
    """slice:prefix:name, as runc has it. Without: system.slice:mamushka:ID, in a session's manager user.slice."""
    slice, prefix, last = "", "mamushka", id
    if cgroups_path:
        parts = cgroups_path.split(":")
        if len(parts) != 3 or not parts[2]:
            raise Invalid(
                f"expected cgroupsPath to be of format slice:prefix:name for systemd cgroups, got {cgroups_path!r}",
                hint="a path of directories is for --cgroup-manager cgroupfs",
            )
        slice, prefix, last = parts
    slice = _checked_slice(slice or ("user.slice" if user else "system.slice"))
    for word in (prefix, last):
        if "/" in word or "\0" in word or ".." in word:
            raise Invalid(f"cgroupsPath {cgroups_path!r} is not valid: {word!r} cannot be in a unit's name")
    if last.endswith(_SLICE):
        raise Invalid(f"cgroupsPath {cgroups_path!r} names a slice: a container is in a scope")
    unit = escape(f"{prefix}-{last}" if prefix else last) + _SCOPE
    if len(unit) > _NAME_MAX or unit[0] in "._":  # those get another cgroup than their name
        raise Invalid(f"cgroupsPath {cgroups_path!r} is not valid: {unit!r} cannot be a unit")
    return Name(slice, unit)


def _checked_slice(slice: str) -> str:
    stem = slice.removesuffix(_SLICE)
    dashes = stem != "-" and (stem[:1] == "-" or stem[-1:] == "-" or "--" in stem)
    if (
        not slice.endswith(_SLICE)
        or not stem
        or dashes
        or stem[0] == "."
        or ".." in stem
        or not _LETTERS.issuperset(stem)
    ):
        raise Invalid(f"{slice!r} is not the name of a slice", hint="user-1000.slice, machine.slice: systemd.slice(5)")
    return slice


def escape(text: str) -> str:
    """What is no letter of a unit's name, as \\x and two digits for each byte. systemd.unit(5)"""
    return "".join(letter if letter in _LETTERS else _codes(letter) for letter in text)


def _codes(letter: str) -> str:
    return "".join(f"\\x{code:02x}" for code in letter.encode("utf-8", "surrogateescape"))


def scope(slice: str, id: str, pid: int, *, unified: bool) -> Properties:
    """What makes a scope ours: delegated, with the first process, accounted for, and gone when it fails."""
    accounting = ("CPU", "Memory", "Tasks", "IO" if unified else "BlockIO")
    return {
        "Description": Variant("s", f"mamushka container {id}"),
        "Slice": Variant("s", slice),
        "Delegate": Variant("b", True),
        "DefaultDependencies": Variant("b", False),
        "CollectMode": Variant("s", "inactive-or-failed"),
        "PIDs": Variant("au", (pid,)),
        **{f"{kind}Accounting": Variant("b", True) for kind in accounting},
    }


def version(text: str) -> int:
    """The number in what the manager says of its version: 252.38-1~deb12u1, v249, 256~rc3; 0 when there is none."""
    text = text.removeprefix("v")
    return int(text[: len(text) - len(text.lstrip("0123456789"))] or "0")


def limits(resources: Resources, *, unified: bool, version: int) -> Properties:
    """The resources that systemd has a property for."""
    found: Properties = {}
    if resources.memory:
        found |= _memory(resources.memory, unified=unified)
    if resources.cpu:
        found |= _cpu(resources.cpu, unified=unified, version=version)
    if resources.pids and resources.pids.limit is not None:
        found["TasksMax"] = _number(resources.pids.limit if resources.pids.limit > 0 else -1)
    weight = resources.block_io.weight if resources.block_io else None
    if weight:
        found["IOWeight" if unified else "BlockIOWeight"] = _number(v2.io_weight(weight) if unified else weight)
    for file, text in resources.unified.items() if unified else ():
        found |= _of_file(file, text, version)
    return found


def _number(number: int) -> Variant:
    """A limit; what is negative is none."""
    return Variant("t", INFINITY if number < 0 else number)


def _memory(memory: Memory, *, unified: bool) -> Properties:
    found: Properties = {}
    if memory.limit:
        found["MemoryMax" if unified else "MemoryLimit"] = _number(memory.limit)
    if memory.reservation and unified:
        found["MemoryLow"] = _number(memory.reservation)
    if memory.swap and unified:
        found["MemorySwapMax"] = _number(memory.swap - (memory.limit or 0) if memory.swap > 0 else -1)
    return found


def _cpu(cpu: CPU, *, unified: bool, version: int) -> Properties:
    found: Properties = {}
    if cpu.idle and unified and version >= _IDLE:
        found["CPUWeight"] = _number(0)  # the property's word for idle
    elif cpu.shares and unified:
        found["CPUWeight"] = _number(v2.weight(cpu.shares))
    elif cpu.shares:
        found["CPUShares"] = _number(cpu.shares)
    if cpu.quota or cpu.period:
        found |= _quota(cpu.quota or -1, cpu.period or 0, version)
    if unified and version >= _CPUSET:
        found |= {"AllowedCPUs": _set(cpu.cpus)} if cpu.cpus else {}
        found |= {"AllowedMemoryNodes": _set(cpu.mems)} if cpu.mems else {}
    return found


def _quota(quota: int, period: int, version: int) -> Properties:
    """Per second, and rounded up to whole percents, as systemd keeps it: the file gets the exact one."""
    found: Properties = {}
    per_second = -1
    if quota > 0:
        per_second = -(-quota * 1_000_000 // (period or _PERIOD_US))
        per_second = -(-per_second // 10_000) * 10_000
    found["CPUQuotaPerSecUSec"] = _number(per_second)
    if period and version >= _CPU_PERIOD:
        found["CPUQuotaPeriodUSec"] = _number(period)
    return found


def _set(text: str) -> Variant:
    """A list of CPUs or nodes as bits, the lowest first."""
    mask = sum(1 << number for number in cpu_list(text))
    return Variant("ay", mask.to_bytes((mask.bit_length() + 7) // 8, "little"))


_FILES = {"memory.max": "MemoryMax", "memory.high": "MemoryHigh", "memory.low": "MemoryLow", "memory.min": "MemoryMin",
          "memory.swap.max": "MemorySwapMax", "pids.max": "TasksMax", "cpu.weight": "CPUWeight"}  # fmt: skip


def _of_file(file: str, text: str, version: int) -> Properties:
    """A file of the specification's ``unified`` map; nothing for one that systemd does not know."""
    words = text.split()
    if file == "cpu.max" and words and all(word == "max" or word.isdigit() for word in words):
        quota = -1 if words[0] == "max" else int(words[0])
        return _quota(quota, int(words[1]) if len(words) > 1 and words[1] != "max" else 0, version)
    if file in ("cpuset.cpus", "cpuset.mems") and version >= _CPUSET and text.strip():
        return {"AllowedCPUs" if file == "cpuset.cpus" else "AllowedMemoryNodes": _set(text)}
    if file in _FILES and (text == "max" or text.isdigit()):
        return {_FILES[file]: _number(-1 if text == "max" else int(text))}
    return {}


def annotated(annotations: Mapping[str, str]) -> Properties:
    """The properties that annotations ask for: ``org.systemd.property.TimeoutStopUSec: uint64 5000000``."""
    found: Properties = {}
    for key, text in annotations.items():
        property = key.removeprefix(ANNOTATION)
        if property == key:
            continue
        if property in _OURS or len(property) < 3 or not (property.isascii() and property.isalpha()):
            raise Invalid(f"the annotation {key} is not valid: this property cannot be set")
        kind = variant(text)
        if property.endswith("Sec") and not property.endswith("USec") and kind.signature in ("i", "u", "x", "t"):
            property, kind = f"{property[:-3]}USec", Variant("t", int(kind.content) * 1_000_000)  # as runc has it
        found[property] = kind
    return found


# GVariant's words for types. https://docs.gtk.org/glib/gvariant-text-format.html
_TYPES = {"byte": "y", "int16": "n", "uint16": "q", "int32": "i", "uint32": "u", "int64": "x", "uint64": "t"}


def variant(text: str) -> Variant:
    """A value in GVariant's text form: booleans, strings, integers with or without their type, arrays of these."""
    word = text.strip()
    if word[:1] == "[" and word[-1:] == "]":
        items = [variant(part) for part in _parts(word[1:-1])]
        kinds = {item.signature for item in items}
        if len(kinds) == 1:
            return Variant("a" + kinds.pop(), tuple(item.content for item in items))
    elif word in ("true", "false"):
        return Variant("b", word == "true")
    elif len(word) > 1 and word[0] in "'\"" and word[-1] == word[0] and "\\" not in word and word[0] not in word[1:-1]:
        return Variant("s", word[1:-1])
    else:
        kind, _, digits = word.rpartition(" ")
        signature = _TYPES.get(kind, kind[1:] if kind[:1] == "@" and kind[1:] in _TYPES.values() else "")
        signature = signature if kind else "i"
        if signature and digits.removeprefix("-").isdigit() and digits.isascii():
            return _fitting(signature, int(digits), text)
    raise Invalid(f"{text!r} is no value for a property of systemd",
                  hint="write true, 'a text', 5, uint64 5 or ['a', 'b']")  # fmt: skip


def _fitting(signature: str, number: int, text: str) -> Variant:
    from mamushka.spec.dbus import body

    try:
        body(signature, (number,))
    except OverflowError:
        raise Invalid(f"{text!r} is too large a number for its type") from None
    return Variant(signature, number)


def _parts(text: str) -> list[str]:
    """What commas part, but for those within quotes."""
    parts, quote = [""], ""
    for letter in text:
        if letter == "," and not quote:
            parts.append("")
            continue
        quote = ("" if letter == quote else quote) if quote else (letter if letter in "'\"" else "")
        parts[-1] += letter
    return parts
