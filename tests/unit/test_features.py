"""``features``: what the document lists is understood, what it enables works here. runtime-spec 1.3, features.md."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from mamushka import document
from mamushka.container import namespaces, options, resctrl, seccomp
from mamushka.container.attributes import PlaceMemory
from mamushka.container.features import features
from mamushka.container.privileges import capability_set
from mamushka.linux import capabilities
from mamushka.spec.runtime import Hooks, MemoryPolicy, Seccomp, SyscallArg, SyscallRule, parse


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """As a caller reads it."""
    found = document.parse(document.dump(features()), "features")
    assert isinstance(found, dict)
    return found


def shape(item: Any) -> Any:
    """Keys all the way down; lists and single values are leaves."""
    return {key: shape(part) for key, part in item.items()} if isinstance(item, dict) else type(item).__name__


def test_it_has_what_the_specification_defines_and_no_more(told: dict[str, Any]) -> None:
    found = shape({key: item for key, item in told.items() if key != "annotations"})
    assert found == {
        "ociVersionMin": "str",
        "ociVersionMax": "str",
        "hooks": "list",
        "mountOptions": "list",
        "linux": {
            "namespaces": "list",
            "capabilities": "list",
            "cgroup": {"v1": "bool", "v2": "bool", "systemd": "bool", "systemdUser": "bool", "rdma": "bool"},
            "seccomp": {
                "enabled": "bool",
                "actions": "list",
                "operators": "list",
                "archs": "list",
                "knownFlags": "list",
                "supportedFlags": "list",
            },
            "apparmor": {"enabled": "bool"},
            "selinux": {"enabled": "bool"},
            "intelRdt": {"enabled": "bool", "schemata": "bool", "monitoring": "bool"},
            "memoryPolicy": {"modes": "list", "flags": "list"},
            "mountExtensions": {"idmap": {"enabled": "bool"}},
            "netDevices": {"enabled": "bool"},
        },
        "potentiallyUnsafeConfigAnnotations": "list",
    }
    assert all(isinstance(item, str) for item in told["annotations"].values())


def test_both_versions_are_accepted(told: dict[str, Any]) -> None:
    for name in ("ociVersionMin", "ociVersionMax"):
        assert parse(b'{"ociVersion": "%s"}' % told[name].encode()).oci_version == told[name]


def test_what_is_listed_is_understood(told: dict[str, Any]) -> None:
    codec_names = {re.sub(r"_(\w)", lambda match: match[1].upper(), name) for name in Hooks.__match_args__}
    assert {*told["hooks"]} == codec_names
    for word in told["mountOptions"]:
        asked = options.parse((word,), "/x")
        assert not asked.parameters, f"{word} would be the filesystem's own"
    assert len({*told["mountOptions"]}) == len(told["mountOptions"]) > 60
    linux = told["linux"]
    assert {*linux["namespaces"]} == namespaces.FLAGS.keys()
    assert tuple(linux["capabilities"]) == capability_set(privileged=True) == capabilities.NAMES
    for mode in linux["memoryPolicy"]["modes"]:
        PlaceMemory(MemoryPolicy(mode, "" if mode in ("MPOL_DEFAULT", "MPOL_LOCAL") else "0"))


def test_every_word_of_seccomp_compiles(told: dict[str, Any]) -> None:
    found = told["linux"]["seccomp"]
    if not found["enabled"]:
        pytest.skip("no libseccomp, or a kernel without filters")
    for action in found["actions"]:
        rules = (SyscallRule(("mkdir",), action),)
        assert seccomp.filter(Seccomp("SCMP_ACT_ALLOW", listener_path="/x", syscalls=rules), cache="").program
    for operator in found["operators"]:
        rules = (SyscallRule(("mkdir",), "SCMP_ACT_ERRNO", args=(SyscallArg(1, 5, operator, 4),)),)
        assert seccomp.filter(Seccomp("SCMP_ACT_ALLOW", syscalls=rules), cache="").program
    for architecture in found["archs"]:
        profile = Seccomp(
            "SCMP_ACT_ALLOW", architectures=(architecture,), syscalls=(SyscallRule(("mkdir",), "SCMP_ACT_KILL"),)
        )
        assert seccomp.filter(profile, cache="").program
    for flag in found["knownFlags"]:
        assert seccomp.filter(Seccomp("SCMP_ACT_ALLOW", flags=(flag,)), cache="").flags
    assert {*found["supportedFlags"]} <= {*found["knownFlags"]}
    newest = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (5, 19)
    assert ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" in found["supportedFlags"]) == newest


def test_what_is_enabled_is_here(told: dict[str, Any]) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    linux = told["linux"]
    assert linux["cgroup"]["v1"] == (" - cgroup " in mounts)
    assert linux["cgroup"]["v2"] == (" - cgroup2 " in mounts)
    assert linux["intelRdt"]["enabled"] == linux["intelRdt"]["schemata"] == (" - resctrl " in mounts)
    assert bool(linux["memoryPolicy"]["modes"]) == os.path.exists("/proc/self/numa_maps")
    assert linux["seccomp"]["enabled"] == seccomp.describe()[0]
    modules = Path("/sys/kernel/security/lsm")
    if modules.exists():
        active = modules.read_text().split(",")
        assert linux["apparmor"]["enabled"] == ("apparmor" in active)
        assert linux["selinux"]["enabled"] == ("selinux" in active)


def test_resctrl_is_told_where_it_is_mounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resctrl, "mounted", lambda: str(tmp_path))
    assert features()["linux"]["intelRdt"] == {"enabled": True, "schemata": True, "monitoring": False}  # type: ignore[index]
    (tmp_path / "mon_groups").mkdir()
    assert features()["linux"]["intelRdt"]["monitoring"] is True  # type: ignore[index]
