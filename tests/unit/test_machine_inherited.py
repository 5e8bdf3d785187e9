"""A guest's programs have the limits of whoever started the machine, but for those of the bundle or its kernel."""

from __future__ import annotations

import resource

from mamushka.machine import inherited
from mamushka.spec.runtime import Process, Rlimit


def test_this_process_own() -> None:
    found = inherited.limits()
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    unlimited = (1 << 64) - 1
    assert found["RLIMIT_STACK"].soft == (unlimited if soft == resource.RLIM_INFINITY else soft)
    assert found["RLIMIT_STACK"].hard == (unlimited if hard == resource.RLIM_INFINITY else hard)
    assert found["RLIMIT_NOFILE"].hard == min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1 << 20)
    assert not {"RLIMIT_NPROC", "RLIMIT_SIGPENDING"} & found.keys()
    assert all(name == limit.type and limit.soft <= limit.hard for name, limit in found.items())


def test_the_bundles_limits_come_first() -> None:
    files, core = Rlimit("RLIMIT_NOFILE", 2000, 1000), Rlimit("RLIMIT_CORE", 0, 0)
    made = inherited.within(Process(args=("true",), rlimits=(files,)), {"RLIMIT_NOFILE": core, "RLIMIT_CORE": core})
    assert made.rlimits == (files, core)
