"""Compiled filters against what their rules say: an interpreter runs the one, a plain evaluation the other."""

from __future__ import annotations

import errno
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamushka.container import seccomp
from mamushka.container.privileges import DEFAULT_CAPABILITIES
from mamushka.container.profiles import docker
from mamushka.errors import Invalid
from mamushka.linux.abi import MACHINE
from mamushka.linux.libraries import LIBSECCOMP
from mamushka.linux.libseccomp import ARCHITECTURES, NEWER
from mamushka.linux.seccomp import Filter
from mamushka.spec.runtime import Seccomp, SyscallArg, SyscallRule
from tests import libseccomp
from tests.bpf import ALLOW, errno_action, run

pytestmark = [
    pytest.mark.skipif(LIBSECCOMP.file() is None, reason="no libseccomp: apt-get install libseccomp2"),
    pytest.mark.skipif(MACHINE != "x86_64", reason="the numbers in this file are x86-64's"),
]

X86_64, X86, X32_BIT = ARCHITECTURES["SCMP_ARCH_X86_64"], ARCHITECTURES["SCMP_ARCH_X86"], 0x40000000
EPERM, ENOSYS = errno_action(errno.EPERM), errno_action(errno.ENOSYS)
# arch/x86/entry/syscalls/syscall_64.tbl
NUMBERS = {
    "read": 0, "write": 1, "socket": 41, "clone": 56, "exit": 60, "kill": 62, "ptrace": 101, "syslog": 103,
    "personality": 135, "mount": 165, "keyctl": 250, "unshare": 272, "bpf": 321, "clone3": 435, **NEWER,
}  # fmt: skip


@pytest.fixture(scope="module")
def default() -> bytes:
    return seccomp.compile(seccomp.default_profile(DEFAULT_CAPABILITIES), cache="")


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("read", (), ALLOW),
        ("exit", (), ALLOW),
        ("ptrace", (), ALLOW),
        ("fchmodat2", (), ALLOW),
        ("mseal", (), ALLOW),
        ("mount", (), EPERM),
        ("unshare", (), EPERM),
        ("bpf", (), EPERM),
        ("keyctl", (), EPERM),
        ("syslog", (), EPERM),
        ("lsm_get_self_attr", (), EPERM),
        ("open_tree_attr", (), ENOSYS),
        ("clone3", (), ENOSYS),
        ("clone", (17,), ALLOW),
        ("clone", (0x10000000,), EPERM),
        ("clone", (0x00020000 | 17,), EPERM),
        ("socket", (1,), ALLOW),
        ("socket", (2,), ALLOW),
        ("socket", (16,), ALLOW),
        ("socket", (12,), EPERM),
        ("socket", (38,), EPERM),
        ("socket", (40,), EPERM),
        ("socket", (45,), ALLOW),
        ("socket", (46,), EPERM),
        ("personality", (0,), ALLOW),
        ("personality", (0xFFFFFFFF,), ALLOW),
        ("personality", (0x20008,), ALLOW),
        ("personality", (0x40000,), EPERM),
    ],
)
def test_the_default_filter_does_as_dockers(default: bytes, name: str, args: tuple[int, ...], expected: int) -> None:
    assert run(default, NUMBERS[name], X86_64, args) == expected


def test_a_call_that_no_kernel_has_yet_is_not_there(default: bytes) -> None:
    for nr in (470, 999, X32_BIT - 1, X32_BIT + 999):
        assert run(default, nr, X86_64) == ENOSYS


def test_the_older_instruction_set_is_covered(default: bytes) -> None:
    assert run(default, 3, X86) == ALLOW  # read
    assert run(default, 21, X86) == EPERM  # mount
    assert run(default, 452, X86) == ALLOW  # fchmodat2
    assert run(default, 999, X86) == ENOSYS
    assert run(default, X32_BIT | 0, X86_64) == ALLOW  # x32 read
    assert run(default, X32_BIT | 165, X86_64) == EPERM  # x32 mount


def test_another_machines_calls_kill(default: bytes) -> None:
    assert run(default, 63, ARCHITECTURES["SCMP_ARCH_AARCH64"]) not in (ALLOW, EPERM, ENOSYS)


def test_capabilities_open_their_calls() -> None:
    admin = seccomp.compile(seccomp.default_profile((*DEFAULT_CAPABILITIES, "CAP_SYS_ADMIN")), cache="")
    for name in ("mount", "unshare", "clone3", "bpf", "syslog", "lsm_get_self_attr"):
        assert run(admin, NUMBERS[name], X86_64) == ALLOW
    assert run(admin, NUMBERS["clone"], X86_64, (0x10000000,)) == ALLOW
    assert run(admin, NUMBERS["keyctl"], X86_64) == EPERM
    log = seccomp.compile(seccomp.default_profile(("CAP_SYSLOG",)), cache="")
    assert run(log, NUMBERS["syslog"], X86_64) == ALLOW


def test_a_multiplexed_call_is_allowed_alone() -> None:
    recv = SyscallRule(("recv",), "SCMP_ACT_ALLOW")
    architectures = ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86")
    program = seccomp.compile(Seccomp("SCMP_ACT_ERRNO", None, architectures, syscalls=(recv,)), cache="")
    assert run(program, 102, X86, (10,)) == ALLOW  # socketcall(SYS_RECV)
    assert run(program, 102, X86, (1,)) == EPERM  # socketcall(SYS_SOCKET)
    both = (recv, SyscallRule(("socketcall",), "SCMP_ACT_ALLOW"))
    program = seccomp.compile(Seccomp("SCMP_ACT_ERRNO", None, architectures, syscalls=both), cache="")
    assert run(program, 102, X86, (1,)) == ALLOW


# libseccomp as judge


def as_libseccomp_has_it(profile: Seccomp) -> bytes:
    rules = [
        (rule.name, rule.action, [(c.argument, c.operation, c.value, c.mask) for c in rule.comparisons])
        for item in profile.syscalls
        for rule in seccomp._rules(item)
    ]
    tokens = [ARCHITECTURES[name] for name in profile.architectures]
    return libseccomp.compile(action(profile.default_action, profile.default_errno_ret), tokens, rules)


ARGUMENTS = [0, 1, 2, 8, 11, 12, 13, 16, 38, 40, 45, 46, 0x20000, 0x20008, 0x7E020000, 0x10000000, 0xFFFFFFFF, 1 << 32]


@pytest.mark.parametrize("capabilities", [DEFAULT_CAPABILITIES, ("CAP_SYS_ADMIN",), ()])
def test_the_default_filter_agrees_with_libseccomps_on_every_call(capabilities: tuple[str, ...]) -> None:
    profile = seccomp.default_profile(capabilities)
    ours, theirs = seccomp.compile(profile, cache=""), as_libseccomp_has_it(profile)
    assert len(ours) < len(theirs)
    # libseccomp 2.5.4 knows calls up to 449, and not uretprobe; what is newer is tested above.
    old = [nr for nr in range(450) if nr != 335]
    every = [(nr, X86_64) for nr in old] + [(nr, X86) for nr in range(450)]
    every += [(nr | X32_BIT, X86_64) for nr in (*old, *range(512, 548))]
    assert [call for call in every if run(ours, *call) != run(theirs, *call)] == []
    for nr, arch in ((41, X86_64), (56, X86_64), (135, X86_64), (359, X86), (102, X86), (120, X86), (136, X86)):
        for argument in ARGUMENTS:
            args = (argument & 0xFFFFFFFF,) if arch == X86 else (argument,)
            assert run(ours, nr, arch, args) == run(theirs, nr, arch, args), (nr, arch, args)


# Random profiles

comparison = st.builds(
    SyscallArg,
    st.integers(0, 5),
    st.sampled_from([0, 1, 2, 0xFFFFFFFF, 0x100000000, 0xFFFFFFFFFFFFFFFF]) | st.integers(0, 2**64 - 1),
    st.sampled_from(["SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT"]),
)
# One rule for each name, so that what a filter means does not hang on the order of rules that disagree.
profiles = st.builds(
    lambda table, default: Seccomp(
        default,
        errno.EACCES if default == "SCMP_ACT_ERRNO" else None,
        ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
        syscalls=tuple(
            SyscallRule((name,), action, 7 if action == "SCMP_ACT_ERRNO" else None, args)
            for name, (action, args) in table.items()
        ),
    ),
    st.dictionaries(
        st.sampled_from(sorted(NUMBERS)),
        st.tuples(
            st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"]),
            st.just(()) | st.tuples(comparison) | st.tuples(comparison, comparison),
        ),
        min_size=1,
    ),
    st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"]),
)
TESTS = {
    "SCMP_CMP_NE": int.__ne__, "SCMP_CMP_LT": int.__lt__, "SCMP_CMP_LE": int.__le__, "SCMP_CMP_EQ": int.__eq__,
    "SCMP_CMP_GE": int.__ge__, "SCMP_CMP_GT": int.__gt__,
}  # fmt: skip


def action(name: str, number: int | None) -> int:
    return seccomp.ACTIONS[name] | (number or 0)


def evaluate(profile: Seccomp, nr: int, args: tuple[int, ...]) -> int:
    """What the rules say, as one would read them."""
    default = action(profile.default_action, profile.default_errno_ret)
    for rule in profile.syscalls:
        if NUMBERS[rule.names[0]] == nr:
            holds = [TESTS[arg.op](args[arg.index], arg.value) for arg in rule.args]
            together = len({arg.index for arg in rule.args}) == len(rule.args)
            if (all(holds) if together else any(holds)) or not holds:
                return action(rule.action, rule.errno_ret)
            return default
    mentioned = [NUMBERS[rule.names[0]] for rule in profile.syscalls]
    newer = mentioned and nr > max(mentioned) and profile.default_action != "SCMP_ACT_ALLOW"
    return ENOSYS if newer else default


@settings(max_examples=150, deadline=None)
@given(
    profiles,
    st.sampled_from([*NUMBERS.values(), 2, 300, 470, 5000]),
    st.lists(st.sampled_from([0, 1, 2, 3, 0xFFFFFFFF, 0x100000000, 2**64 - 1]), min_size=6, max_size=6).map(tuple),
)
def test_a_compiled_filter_does_what_its_rules_say(profile: Seccomp, nr: int, args: tuple[int, ...]) -> None:
    unsupported = any(rule.names[0] in NEWER and rule.args for rule in profile.syscalls)
    if not unsupported:  # a comparison on a call that libseccomp does not know is left out, with its rule
        assert run(seccomp.compile(profile, cache=""), nr, X86_64, args) == evaluate(profile, nr, args)


# Bad input


@pytest.mark.parametrize(
    ("profile", "word"),
    [
        (Seccomp("SCMP_ACT_NONSENSE"), "SCMP_ACT_NONSENSE"),
        (Seccomp("SCMP_ACT_NOTIFY"), "SCMP_ACT_NOTIFY"),
        (Seccomp("SCMP_ACT_ALLOW", architectures=("SCMP_ARCH_VAX",)), "SCMP_ARCH_VAX"),
        (Seccomp("SCMP_ACT_ALLOW", syscalls=(SyscallRule(("read",), "DENY"),)), "DENY"),
        (Seccomp("SCMP_ACT_ALLOW", syscalls=(SyscallRule(("read",), "SCMP_ACT_ERRNO", 1 << 16),)), "65536"),
        (
            Seccomp(
                "SCMP_ACT_ALLOW",
                syscalls=(SyscallRule(("read",), "SCMP_ACT_ERRNO", args=(SyscallArg(6, 0, "SCMP_CMP_EQ"),)),),
            ),
            "argument 6",
        ),
    ],
)
def test_what_no_filter_can_be_is_refused_by_name(profile: Seccomp, word: str) -> None:
    with pytest.raises(Invalid, match=word):
        seccomp.compile(profile, cache="")


def test_an_unknown_call_or_flag() -> None:
    rule = SyscallRule(("no_such_call", "mount"), "SCMP_ACT_ERRNO")
    program = seccomp.compile(Seccomp("SCMP_ACT_ALLOW", syscalls=(rule,)), cache="")
    assert run(program, NUMBERS["mount"], X86_64) == EPERM
    with pytest.raises(Invalid, match="SECCOMP_FILTER_FLAG_FAST"):
        seccomp.filter(Seccomp("SCMP_ACT_ALLOW", flags=("SECCOMP_FILTER_FLAG_FAST",)), cache="")


def test_a_program_the_kernel_would_not_take_is_refused_before() -> None:
    for size in (0, 7, 8 * 4097):
        with pytest.raises(ValueError, match="instructions"):
            Filter(bytes(size))


# The cache


def test_a_cached_filter_is_the_compiled_one(tmp_path, monkeypatch) -> None:
    cache = str(tmp_path / "seccomp")
    profile = seccomp.default_profile(DEFAULT_CAPABILITIES)
    program = seccomp.compile(profile, cache=cache)
    monkeypatch.setattr(seccomp, "_compile", lambda _: pytest.fail("compiled although cached"))
    assert seccomp.compile(profile, cache=cache) == program
    monkeypatch.setattr(seccomp, "_last", None)
    assert seccomp.compile(profile, cache=cache) == program
    assert seccomp.default_profile([*DEFAULT_CAPABILITIES, "CAP_NET_ADMIN"]) is profile


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "open", "link", "huge"])
def test_a_damaged_cache_file_is_not_believed(tmp_path, monkeypatch, damage: str) -> None:
    cache = str(tmp_path / "seccomp")
    profile = Seccomp("SCMP_ACT_ALLOW", syscalls=(SyscallRule(("mount",), "SCMP_ACT_ERRNO"),))
    program = seccomp.compile(profile, cache=cache)
    (name,) = os.listdir(cache)  # nothing of how it was written
    path = os.path.join(cache, name)
    with open(path, "rb") as file:
        raw = bytearray(file.read())
    if damage == "flip":
        raw[-1] ^= 1
    elif damage == "cut":
        del raw[-8:]
    elif damage == "empty":
        raw.clear()
    elif damage == "huge":
        raw += bytes(1 << 20)
    if damage == "link":
        os.rename(path, path + ".real")
        os.symlink(path + ".real", path)
    else:
        with open(path, "wb") as file:
            file.write(raw)
    if damage == "open":
        os.chmod(path, 0o666)
    assert not seccomp._cached(path)
    monkeypatch.setattr(seccomp, "_last", None)
    assert seccomp.compile(profile, cache=cache) == program


def test_a_cache_that_cannot_be_written_is_none() -> None:
    assert seccomp.compile(Seccomp("SCMP_ACT_ALLOW"), cache="/proc/no/such")


# Docker's format

DOCKER = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 1,
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": None},
    ],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": None, "comment": "all may"},
        {"name": "write", "action": "SCMP_ACT_ALLOW"},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["kill"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
        {"names": ["exit"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["s390x"]}},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
        {
            "names": ["socket"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ", "valueTwo": 0}],
        },
    ],
}


def test_a_profile_in_dockers_format() -> None:
    profile = docker.parse_profile(json.dumps(DOCKER).encode(), DEFAULT_CAPABILITIES)
    assert profile.architectures == ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86")
    assert [rule.names for rule in profile.syscalls] == [("read",), ("write",), ("clone3",), ("exit",), ("socket",)]
    program = seccomp.compile(profile, cache="")
    assert run(program, NUMBERS["clone3"], X86_64) == ENOSYS
    assert run(program, NUMBERS["socket"], X86_64, (2,)) == ALLOW
    assert run(program, NUMBERS["socket"], X86_64, (3,)) == EPERM
    admin = docker.parse_profile(json.dumps(DOCKER).encode(), ("CAP_SYS_ADMIN",))
    assert ("mount",) in [rule.names for rule in admin.syscalls]


@pytest.mark.parametrize(
    "change",
    [
        {"defaultAction": None},
        {"architectures": ["SCMP_ARCH_X86"]},
        {"syscalls": [{"name": "a", "names": ["b"], "action": "SCMP_ACT_ALLOW"}]},
        {"syscalls": [{"names": ["a"]}]},
        {"syscalls": [{"names": [1], "action": "SCMP_ACT_ALLOW"}]},
        {"syscalls": ["read"]},
        {"syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "new"}}]},
        {"syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "args": [{"index": -1, "op": "SCMP_CMP_EQ"}]}]},
    ],
)
def test_a_broken_profile_is_invalid(change: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        docker.parse_profile(json.dumps(DOCKER | change).encode(), ())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["SCMP_ACT_ALLOW", "4.8"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*DOCKER, "names", "args", "action",
                                                                                "includes", "caps", "op", "value"]),
                                                                inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40) | json_values.map(lambda item: json.dumps(item).encode()))
def test_any_input_is_a_profile_or_invalid(raw: bytes) -> None:
    try:
        docker.parse_profile(raw, ())
    except Invalid:
        pass
