"""System call profiles in Docker's format: rules that apply by capability, machine and kernel version.

The format is libseccomp's words with ``includes`` and ``excludes``; what is left after these is the filter of a
bundle. moby/profiles, seccomp/seccomp.go.
"""

from __future__ import annotations

from mamushka import document
from mamushka.container.seccomp import kernel
from mamushka.errors import Invalid
from mamushka.linux.abi import MACHINE
from mamushka.spec.runtime import Seccomp, SyscallArg, SyscallRule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from typing import Any

# What Go calls these machines, for profiles in Docker's format.
_GO_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
_NATIVE = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64", "riscv64": "SCMP_ARCH_RISCV64"}
# Docker's default profile has 17 KB; a hundred times that is no profile.
_PROFILE_MAX = 2 << 20


def parse_profile(raw: bytes, capabilities: Iterable[str], machine: str = MACHINE) -> Seccomp:
    """A profile in Docker's format (``--security-opt seccomp=FILE``), for these capabilities on this host.

    Raises Invalid, never anything else.
    """
    profile = _Object(document.parse(raw, "the seccomp profile", size_max=_PROFILE_MAX), "the seccomp profile")
    architectures = profile.words("architectures")
    table = profile.objects("archMap")
    if architectures and table:
        raise Invalid("the seccomp profile has both architectures and archMap", hint="leave one of them out")
    for entry in table:
        if entry.word("architecture") == _NATIVE.get(machine):
            architectures = (entry.word("architecture"), *entry.words("subArchitectures"))
            break
    held = frozenset(capabilities)
    return Seccomp(
        default_action=profile.word("defaultAction"),
        default_errno_ret=profile.number("defaultErrnoRet"),
        architectures=architectures,
        flags=profile.words("flags"),
        listener_path=profile.word("listenerPath", ""),
        listener_metadata=profile.word("listenerMetadata", ""),
        syscalls=tuple(_rule(item) for item in profile.objects("syscalls") if _applies(item, held, machine)),
    )


def _applies(item: _Object, held: Container[str], machine: str) -> bool:
    """Whether a profile's rule is for this host and these capabilities."""
    here = _GO_MACHINES.get(machine, machine)
    includes, excludes = item.object("includes"), item.object("excludes")
    return (
        all(name in held for name in includes.words("caps"))
        and not any(name in held for name in excludes.words("caps"))
        and (not includes.words("arches") or here in includes.words("arches"))
        and here not in excludes.words("arches")
        and (not includes.word("minKernel", "") or kernel() >= _kernel_word(includes.word("minKernel")))
        and (not excludes.word("minKernel", "") or kernel() < _kernel_word(excludes.word("minKernel")))
    )


def _kernel_word(word: str) -> tuple[int, int]:
    major, dot, minor = word.partition(".")
    if not dot or not major.isdecimal() or not minor.isdecimal() or len(word) > 16:
        raise Invalid(f"the minKernel {word!r} of the seccomp profile is not of the form 4.8")
    return int(major), int(minor)


def _rule(item: _Object) -> SyscallRule:
    name, names = item.word("name", ""), item.words("names")
    if name and names:
        raise Invalid(f"a rule of the seccomp profile has both name {name!r} and names", hint="leave name out")
    args = tuple(
        SyscallArg(arg.number("index") or 0, arg.number("value") or 0, arg.word("op"), arg.number("valueTwo") or 0)
        for arg in item.objects("args")
    )
    return SyscallRule(names or ((name,) if name else ()), item.word("action"), item.number("errnoRet"), args)


class _Object:
    """An object of a profile, asked for its members by type; null is absence. Every mismatch is Invalid."""

    __slots__ = ("_members", "_what")

    def __init__(self, members: Any, what: str) -> None:
        if not isinstance(members, dict):
            raise Invalid(f"{what} is not an object")
        self._members, self._what = members, what

    def _get(self, key: str, kind: type, default: Any) -> Any:
        found = self._members.get(key)
        if found is None:
            return default
        if not isinstance(found, kind) or isinstance(found, bool):
            raise Invalid(f"{key} of {self._what} is not what it should be: {str(found)[:60]!r}")
        return found

    def word(self, key: str, default: str | None = None) -> str:
        result = self._get(key, str, default)
        if result is None:
            raise Invalid(f"{self._what} has no {key}")
        return str(result)

    def number(self, key: str) -> int | None:
        result: int | None = self._get(key, int, None)
        if result is not None and not 0 <= result < 1 << 64:
            raise Invalid(f"{key} of {self._what} is out of range: {result}")
        return result

    def words(self, key: str) -> tuple[str, ...]:
        result = tuple(self._get(key, list, ()))
        if not all(isinstance(item, str) for item in result):
            raise Invalid(f"{key} of {self._what} is not a list of strings")
        return result

    def object(self, key: str) -> _Object:
        return _Object(self._get(key, dict, {}), f"{key} of {self._what}")

    def objects(self, key: str) -> list[_Object]:
        return [_Object(item, f"an entry of {key}") for item in self._get(key, list, ())]
