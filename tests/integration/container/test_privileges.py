"""A process that has given up its privileges, asked by the kernel's own account of it and by trying."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mamushka.container import seccomp
from mamushka.container.channel import LISTENS
from mamushka.container.operation import GATE, LISTENER, OPENED, RELEASED
from mamushka.container.privileges import DEFAULT_CAPABILITIES, Privileges, capability_set, lacking, prepare
from mamushka.container.spawn import Birth
from mamushka.errors import Invalid, Unsupported
from mamushka.linux import capabilities
from mamushka.linux.abi import MACHINE
from mamushka.linux.script import CHANNEL, ROOM, Script, parse
from mamushka.spec.runtime import Capabilities, Process, Rlimit, Seccomp, SyscallRule, User

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

ORDINARY = Capabilities(DEFAULT_CAPABILITIES, DEFAULT_CAPABILITIES, (), DEFAULT_CAPABILITIES, ())


def performed(privileges: Privileges, more: Callable[[Script], None]) -> Iterator[tuple[int, int, int]]:
    """A process whose script applies the privileges and goes on with more: (pid, what it tells, how to let it go)."""
    told, telling = os.pipe()
    waiting, going = os.pipe()
    script = Script()
    script.descriptor(telling, CHANNEL)
    script.descriptor(waiting, GATE)
    script.begin("\0confine")
    if privileges.oom_score:
        script.call("openat", -100, b"/proc/self/oom_score_adj", os.O_WRONLY, 0, into=OPENED)
        script.call("write", OPENED, privileges.oom_score, len(privileges.oom_score))
    privileges.early(script)
    privileges.apply(script)
    more(script)
    pid, pidfd = Birth(script, telling, told, (), flags=0).give(lambda _: None)
    for descriptor in (telling, waiting, pidfd):
        os.close(descriptor)
    yield pid, told, going
    os.close(going)
    os.close(told)
    os.waitpid(pid, 0)


def status(privileges: Privileges) -> str:
    """What the kernel says of a process that has applied the privileges; or its failure."""

    def wait(script: Script) -> None:
        script.call("write", CHANNEL, b"R", 1)
        script.call("read", GATE, ROOM, 1)
        script.call("exit_group", 0)

    for pid, told, _ in performed(privileges, wait):
        answer = os.read(told, 8192)
        if answer != b"R":
            return parse(answer)[3]
        with open(f"/proc/{pid}/status") as lines:
            return lines.read()
    raise AssertionError


def confined(privileges: Privileges, run: Callable[[], str]) -> str:
    """What a function of this module answers in an interpreter behind the privileges, as root."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; from {__name__} import {run.__name__} as run; print(run())"

    def execute(script: Script) -> None:
        words = [script.text(os.fsencode(word)) for word in (sys.executable, "-I", "-c", code)]
        script.call("dup3", CHANNEL, 1, 0)
        script.call("execve", os.fsencode(sys.executable), script.vector(words), script.vector([]))

    for _, told, _ in performed(privileges, execute):
        with open(told, "rb", closefd=False) as answers:
            return answers.read().decode().rstrip("\n")
    raise AssertionError


def limits_and_score() -> str:
    with open("/proc/self/oom_score_adj") as score:
        return f"{resource.getrlimit(resource.RLIMIT_NOFILE)} {score.read().strip()}"


def keys() -> str:
    with open("/proc/keys") as keys:
        return keys.read()


def attempt() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    answers = []
    for name, number in SYSCALLS[MACHINE].items():
        result = libc.syscall(number, 0, 0, 0, 0, 0)
        answers.append(f"{name}={'ok' if result >= 0 else errno.errorcode[ctypes.get_errno()]}")
    for family in (socket.AF_INET, socket.AF_VSOCK):
        result = libc.socket(family, socket.SOCK_STREAM, 0)
        answers.append(f"{family.name}={'ok' if result >= 0 else errno.errorcode[ctypes.get_errno()]}")
    return " ".join(answers)


def fields(text: str) -> dict[str, str]:
    return {name: rest.strip() for name, _, rest in (line.partition(":") for line in text.splitlines())}


def test_root_keeps_the_default_capabilities_only() -> None:
    found = fields(status(prepare(Process(capabilities=ORDINARY, no_new_privileges=True))))
    expected = f"{capabilities.mask(DEFAULT_CAPABILITIES):016x}"
    assert (found["CapPrm"], found["CapEff"], found["CapBnd"]) == (expected,) * 3
    assert (found["CapInh"], found["CapAmb"]) == ("0" * 16,) * 2
    assert found["NoNewPrivs"] == "1"


def test_a_user_has_ids_groups_mask_and_no_more_power_than_named() -> None:
    some = ("CAP_NET_BIND_SERVICE", "CAP_KILL")
    wanted = Capabilities(DEFAULT_CAPABILITIES, some, some, some, ("CAP_KILL",))
    user = User(uid=1234, gid=2345, umask=0o027, additional_gids=(3456, 4567))
    found = fields(status(prepare(Process(user=user, capabilities=wanted))))
    assert found["Uid"].split() == ["1234"] * 4
    assert found["Gid"].split() == ["2345"] * 4
    assert found["Groups"].split() == ["3456", "4567"]
    assert found["Umask"] == "0027"
    assert found["CapEff"] == f"{capabilities.mask(some):016x}"
    assert found["CapAmb"] == f"{capabilities.mask(['CAP_KILL']):016x}"
    assert found["NoNewPrivs"] == "0"


def test_capabilities_that_the_caller_lacks_are_left_out_by_name() -> None:
    every = capability_set(privileged=True)
    assert every == capabilities.NAMES
    privileges = prepare(Process(capabilities=Capabilities(every, every, every, every, every)))
    assert privileges.missing == lacking()
    found = fields(status(privileges))
    assert capabilities.names(int(found["CapEff"], 16)) == tuple(name for name in every if name not in lacking())


def test_limits_and_oom_score() -> None:
    limits = (Rlimit("RLIMIT_NOFILE", hard=77, soft=66), Rlimit("RLIMIT_CORE", 0, 0))

    assert confined(prepare(Process(rlimits=limits, oom_score_adj=321)), limits_and_score) == "(66, 77) 321"


def test_a_limit_that_cannot_be_raised_is_named() -> None:
    if "CAP_SYS_RESOURCE" not in lacking():
        pytest.skip("this process may raise every limit")
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    if hard == resource.RLIM_INFINITY:
        resource_name, hard = "RLIMIT_MEMLOCK", resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    else:
        resource_name = "RLIMIT_NPROC"
    answer = status(prepare(Process(rlimits=(Rlimit(resource_name, hard + 1, hard + 1),))))
    assert "prlimit64: Operation not permitted" in answer


@pytest.mark.parametrize(
    "process",
    [
        Process(rlimits=(Rlimit("RLIMIT_NONSENSE", 1, 1),)),
        Process(rlimits=(Rlimit("RLIMIT_CORE", 1, 2),)),
        Process(rlimits=(Rlimit("RLIMIT_CORE", 1, 1), Rlimit("RLIMIT_CORE", 1, 1))),
    ],
)
def test_limits_that_are_none(process: Process) -> None:
    with pytest.raises(Invalid):
        prepare(process)


def test_a_label_without_its_security_module_is_refused() -> None:
    if not os.path.exists("/sys/module/apparmor"):
        with pytest.raises(Unsupported, match="AppArmor"):
            prepare(Process(apparmor_profile="docker-default"))
    if not os.path.exists("/sys/fs/selinux/enforce"):
        with pytest.raises(Unsupported, match="SELinux"):
            prepare(Process(selinux_label="system_u:system_r:container_t:s0"))


def test_a_session_keyring_of_its_own() -> None:
    answer = confined(prepare(Process(), keyring="mamushka-test-keyring"), keys)
    if "Function not implemented" in answer or "No such file" in answer:
        pytest.skip("a kernel without keyrings")
    assert "mamushka-test-keyring" in answer


# The filter, for real

SYSCALLS = {
    "x86_64": {"keyctl": 250, "clone3": 435, "bpf": 321, "getpid": 39, "open_tree_attr": 467, "nothing": 999},
    "aarch64": {"keyctl": 219, "clone3": 435, "bpf": 280, "getpid": 172, "open_tree_attr": 467, "nothing": 999},
}


@pytest.mark.skipif(MACHINE not in SYSCALLS, reason="no numbers for this machine in the test")
@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_calls_are_answered_as_the_default_profile_says(no_new_privileges: bool) -> None:
    filter = seccomp.filter(seccomp.default_profile(DEFAULT_CAPABILITIES), cache="")
    process = Process(capabilities=ORDINARY, no_new_privileges=no_new_privileges)
    assert confined(prepare(process, filter=filter), attempt) == (
        "keyctl=EPERM clone3=ENOSYS bpf=EPERM getpid=ok open_tree_attr=ENOSYS nothing=ENOSYS AF_INET=ok AF_VSOCK=EPERM"
    )


def test_a_process_with_a_listener_makes_no_call_until_it_is_released() -> None:
    rules = (SyscallRule(("mkdirat",), "SCMP_ACT_NOTIFY"),)
    with pytest.raises(Invalid, match="listenerPath"):
        seccomp.filter(Seccomp("SCMP_ACT_ALLOW", syscalls=rules), cache="")
    profile = Seccomp("SCMP_ACT_ALLOW", listener_path="/run/listener", syscalls=rules)
    privileges = prepare(Process(no_new_privileges=True), filter=seccomp.filter(profile, cache=""))

    def go_on(script: Script) -> None:
        script.call("write", CHANNEL, b"R", 1)
        script.call("exit_group", 0)

    for pid, told, _ in performed(privileges, go_on):
        assert os.read(told, 1) == LISTENS
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            while (number := int.from_bytes(os.pread(memory.fileno(), 4, LISTENER.address), "little")) == 0xFFFFFFFF:
                continue
            assert "seccomp" in os.readlink(f"/proc/{pid}/fd/{number}")
            assert "\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()
            os.pwrite(memory.fileno(), b"\1\0\0\0", RELEASED.address)
        assert os.read(told, 1) == b"R"
