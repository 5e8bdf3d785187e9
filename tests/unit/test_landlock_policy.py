"""Landlock policies as text and as documents: what they mean, and what is refused."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.container.landlock import PathRule, Policy, PortRule, Restrict, parse, permit
from mamushka.errors import Invalid
from mamushka.linux import landlock
from mamushka.linux.landlock import FS

READ_EXECUTE = 0b1101  # execute, read_file, read_dir
ALL = (1 << 16) - 1


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("ro", Policy(ALL, paths=(PathRule("/", 0, READ_EXECUTE, "ro"),))),
        ("rx:/bin", Policy(ALL, paths=(PathRule("/bin", 0, READ_EXECUTE, "rx:/bin"),))),
        ("rw:/a:b", Policy(ALL, paths=(PathRule("/a:b", 0, ALL, "rw:/a:b"),))),
        ("ro:/,abi:2", Policy(ALL >> 2, paths=(PathRule("/", 0, READ_EXECUTE, "ro:/"),))),
        (
            "read+make_reg+execute:/x",
            Policy(ALL, paths=(PathRule("/x", 1 << 8 | 1, 0b1100, "read+make_reg+execute:/x"),)),
        ),
        ("connect:443", Policy(0, 2, ports=(PortRule(443, 2),))),
        ("bind_tcp+connect_tcp:0", Policy(0, 3, ports=(PortRule(0, 3),))),
        ("bind:80-82,connect:none", Policy(0, 3, ports=tuple(PortRule(port, 1) for port in (80, 81, 82)))),
        ("scope:signal+abstract_unix_socket", Policy(scoped=3)),
        ("scope:signal,log:new_exec_on", Policy(scoped=2, flags=2)),
        ("handled:write", Policy(1 << 1 | 1 << 14)),
        (
            " ro  rw:/dev,follow\n",
            Policy(ALL, paths=(PathRule("/", 0, READ_EXECUTE, "ro"), PathRule("/dev", 0, ALL, "rw:/dev")), follow=True),
        ),
        ("follow,ro", Policy(ALL, paths=(PathRule("/", 0, READ_EXECUTE, "ro"),), follow=True)),
    ],
)
def test_text(text: str, policy: Policy) -> None:
    assert parse(text) == policy


@pytest.mark.parametrize(
    "text",
    [
        "", ",", "ro,", "ro,,rx:/", "rw:/my directory",
        "none", "rwx:/x", "ro:x", "ro:", ":/x", "ro:/../x", "ro:/x/../y", "connect:", "connect:65536",
        "connect:-1", "connect:0x1", "connect:²", "connect:443/tcp", "connect:9-8", "connect:1-65535", "bind+ro:80",
        "scope:all", "abi:0", "abi:8", "abi:2", "follow", "log:new_exec_on", "handled:write,ro:/x",
        "handled:write,read_file:/x", "ro:/\0", "{}", "{", '{"ruleset": {}}', '{"ruleset": [{"handledAccessFs": "x"}]}',
        '{"ruleset": [{"handledAccessFs": ["v9.all"]}]}', '{"rules": []}', '{"ruleset": [], "abi": 3}',
        '{"ruleset": [{"scoped": ["signal"]}], "netPort": [{"allowedAccess": ["connect_tcp"], "port": [1]}]}',
        '{"ruleset": [{"scoped": ["signal"]}], "netPort": [{"allowedAccess": ["bind_tcp"], "port": [true]}]}',
        '{"ruleset":[{"handledAccessFs":["v1.all"]}],"pathBeneath":[{"allowedAccess":["refer"],"parent":["/"]}]}',
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse(text)


def test_a_document() -> None:
    text = json.dumps(
        {
            "ruleset": [{"handledAccessFs": ["v2.all"]}, {"handledAccessNet": ["connect_tcp"], "scoped": ["signal"]}],
            "pathBeneath": [{"allowedAccess": ["v1.read_write", "execute"], "parent": ["/a", "/b"]}],
            "netPort": [{"allowedAccess": ["connect_tcp"], "port": [443, 8443]}],
            "flags": ["log_new_exec_on"],
            "follow": True,
        }
    )
    implied = (1 << 13) - 2
    assert parse(text) == Policy(
        (1 << 14) - 1, 2, 2, 2, (PathRule("/a", 1, implied, "/a"), PathRule("/b", 1, implied, "/b")),
        (PortRule(443, 2), PortRule(8443, 2)), True,
    )  # fmt: skip


@given(st.text(alphabet='rowx:/,+-0123456789{}[]"abindcope', max_size=40))
def test_any_text_is_a_policy_or_invalid(text: str) -> None:
    try:
        policy = parse(text)
    except Invalid:
        return
    assert policy.needs() and Restrict(policy, no_new_privileges=True).describe()


def test_the_description_names_what_is_allowed() -> None:
    told = Restrict(parse("ro,rw:/data,connect:443,scope:signal"), no_new_privileges=True).describe()
    assert told == "restrict by Landlock: ro, rw:/data, connect_tcp, signal, port 443"


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("ro:/usr", True),
        ("ro:/usr,handled:execute", True),
        ("handled:make_reg", False),
        ("connect:443", False),
        ('{"ruleset":[{"handledAccessFs":["execute"]}]}', True),
        ('{"ruleset":[{"scoped":["signal"]}]}', False),
    ],
)
def test_a_program_of_the_callers_own_is_permitted(text: str, more: bool) -> None:
    policy = parse(permit(text, "/dev/init"))
    assert [rule.path for rule in policy.paths][-1:] == (["/dev/init"] if more else [])
    assert policy.handled_fs == parse(text).handled_fs


def test_every_right_of_the_kernels_has_a_name() -> None:
    for table, prefix in (
        (FS, "LANDLOCK_ACCESS_FS_"),
        (landlock.NET, "LANDLOCK_ACCESS_NET_"),
        (landlock.SCOPE, "LANDLOCK_SCOPE_"),
        (landlock.LOG, "LANDLOCK_RESTRICT_SELF_"),
    ):
        names = {name.removeprefix(prefix).lower() for name in vars(landlock) if re.match(prefix, name)}
        assert set(table) == names
        for name, (bit, _) in table.items():
            assert bit == getattr(landlock, prefix + name.upper())
