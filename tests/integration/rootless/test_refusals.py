"""What an ordinary user cannot have is refused with the reason, and with what would change it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import pytest

from tests import peers
from tests.integration.rootless.person import FIRST, SIZE, UID, Person

pytestmark = [pytest.mark.root]
ALONE = ("--network", "none")
V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")


@pytest.fixture
def user(ordinary: Person) -> Iterator[Person]:
    """The user with subordinate ids; what a test changes for him is taken back."""
    yield ordinary
    ordinary.before = []
    for name in ("subuid", "subgid"):
        ordinary.file(f"/etc/{name}", f"person:{FIRST}:{SIZE}\n")


LIMITS = (("--memory", "64m"), ("--cpus", "0.5"), ("--pids-limit", "10"), ("--cpuset-cpus", "0"))


@pytest.mark.parametrize("limit", LIMITS)
def test_limits_are_refused_where_no_cgroup_may_be_made(user: Person, limit: tuple[str, str]) -> None:
    said = user.bad("run", "--rm", *ALONE, *limit, "busybox", "true")
    assert "cannot limit" in said and ("Delegate=yes" if V2 else "cgroup v1 cannot be delegated") in said


def test_what_needs_a_cgroup_is_refused(user: Person, name: str) -> None:
    user.good("run", "-d", "--name", name, *ALONE, "busybox", "sleep", "600")
    reason = "Delegate=yes" if V2 else "cannot be delegated"
    assert reason in user.bad("pause", name)
    assert reason in user.bad("update", "--memory", "64m", name)
    user.good("rm", "-f", name)


def test_further_user_namespaces_are_refused(user: Person) -> None:
    assert "without root" in user.bad("run", "--rm", *ALONE, "--userns", "private", "busybox", "true")


def test_checkpoints_are_refused(user: Person, name: str) -> None:
    user.good("run", "-d", "--name", name, *ALONE, "busybox", "sleep", "600")
    assert "criu needs rights of the host's root" in user.bad("checkpoint", "create", name, "here")
    assert user.good("exec", name, "echo", "on") == "on\n"
    user.good("rm", "-f", name)


def test_what_only_root_may_raise_is_refused(user: Person) -> None:
    said = user.bad("run", "--rm", *ALONE, "--ulimit", "nofile=99999999", "busybox", "true")
    assert "RLIMIT_NOFILE cannot be raised to 99999999" in said
    said = user.bad("run", "--rm", *ALONE, "--oom-score-adj", "-900", "busybox", "true")
    assert "only root may lower it" in said


def test_no_user_namespaces_at_all(user: Person) -> None:
    """The switch is a user namespace's own, so a namespace that maps everybody stands for the host."""
    user.before = ["echo 0 > /proc/sys/user/max_user_namespaces"]
    done = user.mamushka("images", wrapper=(sys.executable, "-c", EVERYBODY))
    assert done.returncode != 0 and "user.max_user_namespaces is 0" in done.stderr
    assert "hint: sudo sysctl -w user.max_user_namespaces=15000" in done.stderr


# A program in a user namespace of its own that maps every id to itself, as the host's does.
EVERYBODY = """
import ctypes, os, sys
made, told = os.pipe(), os.pipe()
pid = os.fork()
if pid:
    os.read(made[0], 1)
    for kind in "ug":
        with open(f"/proc/{pid}/{kind}id_map", "w") as file:
            file.write("0 0 4294967295")
    os.write(told[1], b"x")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
assert ctypes.CDLL(None).unshare(0x10000000) == 0
os.write(made[1], b"x")
os.read(told[0], 1)
os.execvp(sys.argv[1], sys.argv[1:])
"""

SWITCHES = (
    ("unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ("apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
)


@pytest.mark.parametrize(("switch", "setting", "remedy"), SWITCHES)
def test_the_doctor_names_a_distributions_switch(user: Person, switch: str, setting: str, remedy: str) -> None:
    """Made-up, where this kernel has no such switch: a file of that name."""
    user.before = [
        "mkdir -p /mnt/kernel; cp -r /proc/sys/kernel/. /mnt/kernel/ 2>/dev/null || true",
        "mount -t tmpfs none /proc/sys/kernel; cp -r /mnt/kernel/. /proc/sys/kernel/ || true; rm -r /mnt/kernel",
        f"echo {setting} > /proc/sys/kernel/{switch}",
    ]
    if not os.path.ismount("/mnt"):
        user.before.insert(0, "mount -t tmpfs none /mnt")
    findings = {item["name"]: item for item in json.loads(user.mamushka("doctor", "--json").stdout)}
    assert findings["user"]["status"] == "failed" and switch in findings["user"]["reason"]
    assert remedy in findings["user"]["mend"]


def test_a_line_for_the_number_grants_ids_too(user: Person) -> None:
    for name in ("subuid", "subgid"):
        user.file(f"/etc/{name}", f"other:1:2\n# a word\n\n{UID}:{FIRST}:{SIZE}\n")
    assert user.good("run", "--rm", *ALONE, "-u", "7", "busybox", "id", "-u") == "7\n"


@pytest.mark.parametrize("lacking", ["subuid", "subgid", "newuidmap"])
def test_who_has_one_id_is_told_once_why(user: Person, lacking: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    if lacking == "newuidmap":
        user.before = [f"mount --bind /dev/null {peers.find('newuidmap')}"]
    else:
        user.file(f"/etc/{lacking}", "")
    roots = ("--data-root", f"{user.home}/alone-{lacking}", "--run-root", f"{user.home}/run/alone-{lacking}")
    first, second = user.mamushka(*roots, "images"), user.mamushka(*roots, "images")
    assert "you have one id" in first.stderr and lacking in first.stderr
    remedy = "apt-get install uidmap" if lacking == "newuidmap" else f"usermod --add-{lacking}s"
    assert remedy in first.stderr and not second.stderr


def test_ids_that_are_not_granted_are_refused_in_the_programs_words(user: Person) -> None:
    """newuidmap looks itself, whatever was read before."""
    code = (
        "from mamushka.container import subordinate; from mamushka.spec.runtime import IDMapping;"
        "ids = (IDMapping(0, {0}, 1), IDMapping(1, 1, 100)); subordinate.make(ids, ids)"
    )
    done = user.python(code.format(UID))
    assert done.returncode != 0 and "newuidmap refuses the ids of the user namespace" in done.stderr


NO_SESSION = ["if [ -d /run/user ]; then mount -t tmpfs none /run/user; fi"]


def test_a_strangers_directory_is_not_used(user: Person) -> None:
    """Everybody may make /tmp/mamushka-UID before he does."""
    user.before = NO_SESSION
    path = f"/tmp/mamushka-{UID}"
    os.mkdir(path)
    try:
        done = user.run("env", "-u", "XDG_RUNTIME_DIR", f"HOME={user.home}", "mamushka", "images")
        assert done.returncode != 0 and f"does not belong to uid {UID}" in done.stderr
        assert os.listdir(path) == []
    finally:
        os.rmdir(path)


def test_without_a_session_the_state_goes_to_a_private_directory(user: Person) -> None:
    user.before = NO_SESSION
    path = f"/tmp/mamushka-{UID}"
    try:
        done = user.run("env", "-u", "XDG_RUNTIME_DIR", "mamushka", "images")
        assert done.returncode == 0, done.stderr
        assert os.stat(path).st_mode & 0o777 == 0o700 and os.stat(path).st_uid == UID
    finally:
        peers.run("rm", "-rf", path)


def test_a_process_with_threads_is_told_another_way(user: Person) -> None:
    code = (
        "import threading, time; threading.Thread(target=time.sleep, args=(3,), daemon=True).start()\n"
        "import mamushka\n"
        "print(mamushka.once('busybox', 'id', '-u', network='none').stdout)"
    )
    done = user.python(code)
    assert done.returncode != 0 and "a process with 2 threads cannot enter" in done.stderr
    done = user.run("mamushka", "unshare", "python3", "-c", code)
    assert done.stdout.strip() == "0", done.stderr


def test_the_python_api(user: Person) -> None:
    code = (
        "import mamushka\n"
        "with mamushka.run('busybox', 'sleep', '600', network='none') as box:\n"
        "    print(box.exec('id', '-u').stdout)\n"
        "    box.files.write('/tmp/x', b'content')\n"
        "    print(box.exec('cat', '/tmp/x').stdout)\n"
        "print(len(mamushka.boxes()))"
    )
    done = user.python(code)
    assert done.stdout.split() == ["0", "content", "0"], done.stderr


def test_the_python_api_for_asyncio(user: Person) -> None:
    """Its threads begin later than the user namespace, also where nobody opened an engine."""
    code = (
        "import asyncio, mamushka\n"
        "async def main():\n"
        "    async with await mamushka.aio.run('busybox', 'sleep', '600', network='none') as box:\n"
        "        done = await asyncio.gather(*(box.exec('echo', str(n)) for n in range(3)))\n"
        "        print(*(item.stdout for item in done))\n"
        "    boxes = [mamushka.aio.once('busybox', 'id', '-u') for _ in range(3)]\n"
        "    print(*(item.stdout for item in await asyncio.gather(*boxes)))\n"
        "asyncio.run(main())"
    )
    done = user.python(code)
    assert done.stdout.split() == ["0", "1", "2", "0", "0", "0"], done.stderr


def test_unshare_runs_a_program_among_the_workloads(user: Person, name: str) -> None:
    user.good("run", "-d", "--name", name, *ALONE, "busybox", "sleep", "600")
    assert name in user.good("unshare", "mamushka", "ps")
    assert user.good("unshare", "cat", "/proc/self/uid_map").split()[:3] == ["0", str(UID), "1"]
    assert user.mamushka("unshare", "sh", "-c", "exit 5").returncode == 5
    assert user.mamushka("unshare", "nonsense").returncode == 127
    user.good("rm", "-f", name)


def test_the_doctor_and_info_tell_what_there_is(person: Person) -> None:
    done = person.mamushka("doctor", "--json")
    assert done.returncode == 0, done.stdout
    findings = {item["name"]: item for item in json.loads(done.stdout)}
    assert findings["user"]["reason"] == f"uid {UID} becomes root of one, with {65537 if person.ids else 1} ids"
    assert findings["ids"]["status"] == ("ok" if person.ids else "warning")
    facts = json.loads(person.good("info", "--format", "json"))
    assert facts["rootless"]["ids"] == (65537 if person.ids else 1)


def test_the_run_root_is_the_users_own(user: Person) -> None:
    user.good("images")
    for path in (f"{user.home}/.local/share/mamushka", f"{user.run_directory}/mamushka"):
        found = os.stat(path)
        assert found.st_uid == UID and not found.st_mode & 0o022, path
