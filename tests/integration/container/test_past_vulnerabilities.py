"""The vulnerabilities that runtimes had, class by class: what each test does would have got out of a naive one.

SECURITY.md has the table of them; some stand in test_filesystems.py, test_processes.py and test_privileges.py.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mamushka.container.cgroups.layout import resolve
from mamushka.container.privileges import apparmor
from mamushka.errors import Invalid, MamushkaError
from mamushka.linux import mount, procfs
from mamushka.linux.process import CLONE_NEWNS, unshare
from mamushka.record import Record
from mamushka.runtime import Stdio
from mamushka.spec.runtime import Config, Hook, Hooks, IDMapping, Mount, Namespace
from mamushka.values import replace

from .conftest import Ground, Output, reap

pytestmark = [pytest.mark.root, pytest.mark.lab]

ALL = {"capabilities": None, "no_new_privileges": False, "linux": {"seccomp": None}}


@contextmanager
def racing(step: Callable[[], None]) -> Iterator[None]:
    """Somebody who shares the root filesystem does this again and again meanwhile."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            try:
                step()
            except OSError:
                continue

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def swap(one: str, other: str) -> None:
    """Exchange two names, with a moment in between."""
    os.rename(one, f"{one}.away")
    os.rename(other, one)
    os.rename(f"{one}.away", other)


def attempts(ground: Ground, config: Config, count: int) -> list[str]:
    """What the container says each time that it can be made."""
    said = []
    for _ in range(count):
        try:
            said.append(ground.run(config)[1])
        except MamushkaError:
            continue  # refused: also good
    return said


def without(config: Config, *destinations: str) -> Config:
    """The bundle without what is mounted there or below."""
    kept = [m for m in config.mounts if not any(f"{m.destination}/".startswith(f"{d}/") for d in destinations)]
    return replace(config, mounts=tuple(kept))


def mapped(ground: Ground, config: Config) -> Config:
    """With users of its own."""
    for path, _, names in os.walk(ground.rootfs):
        for name in ("", *names):
            os.chown(f"{path}/{name}", 100000, 100000, follow_symlinks=False)
    ids = (IDMapping(0, 100000, 65536),)
    namespaces = (*config.linux.namespaces, Namespace("user"))
    return replace(config, linux=replace(config.linux, uid_mappings=ids, gid_mappings=ids, namespaces=namespaces))


def seen(ground: Ground) -> list[str]:
    path = f"{ground.rootfs}/tmp/seen"
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return file.read().splitlines()


# CVE-2019-5736: the runtime's executable, and all else that its processes show while they enter


def test_an_executable_that_enters_cannot_be_overwritten(ground: Ground) -> None:
    """Root with every capability, no filter and no users of its own writes to whatever process appears."""
    script = """
echo > /tmp/ready
while :; do for p in /proc/[0-9]*; do
  case "$(readlink $p/exe)" in /bin/busybox|'') ;; *) (echo broken >> $p/exe) 2>/dev/null && echo $p >> /tmp/seen;; esac
done; done"""
    with open(os.path.realpath(sys.executable), "rb") as file:
        before = hashlib.sha256(file.read()).hexdigest()
    ground.start(ground.config(script, **ALL))
    wait_for(f"{ground.rootfs}/tmp/ready")
    for _ in range(20):
        assert ground.exec("echo ran", capabilities=None) == (0, "ran\n")
    assert seen(ground) == []
    with open(os.path.realpath(sys.executable), "rb") as file:
        assert hashlib.sha256(file.read()).hexdigest() == before


LOOKING = """
echo > /tmp/ready
while :; do for p in /proc/[0-9]*; do
  if [ -e $p/root/usr ] || [ -e $p/cwd/usr ]; then echo root $p >> /tmp/seen; fi
  case "$(readlink $p/exe)" in /bin/busybox|'') ;; *) echo exe $(readlink $p/exe) >> /tmp/seen;; esac
  (cat $p/environ | grep -q MAMUSHKA_TEST) 2>/dev/null && echo environ >> /tmp/seen
done; done"""


def test_what_enters_a_user_namespace_shows_nothing_of_the_hosts(ground: Ground) -> None:
    """CVE-2016-9962's class: with CAP_SYS_PTRACE there, its root looked into a copy of the interpreter, whose root
    directory was still the host's."""
    os.environ["MAMUSHKA_TEST_SECRET"] = "secret"
    try:
        ground.start(mapped(ground, ground.config(LOOKING, **ALL)))
        wait_for(f"{ground.rootfs}/tmp/ready")
        for _ in range(20):
            assert ground.exec("echo ran", capabilities=None, oom_score_adj=100) == (0, "ran\n")
    finally:
        del os.environ["MAMUSHKA_TEST_SECRET"]
    assert seen(ground) == []


def test_a_container_that_joins_others_shows_them_nothing_of_the_hosts(ground: Ground) -> None:
    """While it is built its root is the host's, and those whose users and processes it joins see it."""
    started = ground.start(mapped(ground, ground.config(LOOKING, **ALL)))
    wait_for(f"{ground.rootfs}/tmp/ready")
    other = Ground(ground.state, ground.rootfs, f"{ground.name}-2")
    config = other.config("echo joined", **ALL)
    joined = {"user": "user", "pid": "pid", "ipc": "ipc", "network": "net", "uts": "uts"}
    namespaces = (*(Namespace(kind, f"/proc/{started.pid}/ns/{file}") for kind, file in joined.items()),
                  Namespace("mount"), Namespace("cgroup"))  # fmt: skip
    for _ in range(20):
        assert other.run(replace(config, hostname="", linux=replace(config.linux, namespaces=namespaces))) == (
            0,
            "joined\n",
        )
    assert seen(ground) == []


def wait_for(path: str) -> None:
    deadline = time.monotonic() + 20
    while not os.path.exists(path):
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


INVENTORY = """
echo fds /proc/self/fd/*; echo environ $(tr '\\0' ' ' < /proc/self/environ); cat /proc/self/maps
grep -E '^(SigBlk|SigIgn|SigCgt|ShdPnd|TracerPid|PPid)' /proc/self/status; readlink /proc/self/exe
cat /proc/self/comm"""


def inventory_is_clean(text: str, descriptors: int, program: str = "busybox") -> None:
    lines = text.splitlines()
    fds = next(line for line in lines if line.startswith("fds ")).split()[1:]
    # The standard streams, and one by which the shell lists them.
    assert len(fds) <= descriptors + 1, fds
    environment = next(line for line in lines if line.startswith("environ")).split()[1:]
    assert {entry.partition("=")[0] for entry in environment} <= {"PATH", "HOME"}, environment
    mapped = {line.split()[-1] for line in lines if "-" in line.split(" ")[0] and len(line.split()) > 5}
    assert all(name.startswith("[") or name.endswith(program) for name in mapped), mapped
    assert not any(word in text for word in ("python", "mamushka", "memfd", "secret"))


@pytest.fixture
def leaky() -> Iterator[None]:
    """A caller with secrets in its environment and descriptors that every child of a naive one inherits."""
    os.environ["MAMUSHKA_TEST_SECRET"] = "secret"
    leaked = [os.open("/etc", os.O_RDONLY) for _ in range(5)]
    for descriptor in leaked:
        os.set_inheritable(descriptor, True)
    yield
    for descriptor in leaked:
        os.close(descriptor)
    del os.environ["MAMUSHKA_TEST_SECRET"]


@pytest.fixture
def tools(ground: Ground) -> Ground:
    for name in ("tr", "grep", "rm", "mkdir", "mv", "ln", "umount"):
        if not os.path.lexists(f"{ground.rootfs}/bin/{name}"):
            os.symlink("busybox", f"{ground.rootfs}/bin/{name}")
    return ground


@pytest.mark.parametrize("users", [False, True])
@pytest.mark.usefixtures("leaky")
def test_nothing_of_the_interpreter_is_inside(tools: Ground, users: bool) -> None:
    config = tools.config(INVENTORY)
    inventory_is_clean(tools.output(mapped(tools, config) if users else config), 3)
    config = tools.config("sleep 60")
    tools.start(mapped(tools, config) if users else config)
    code, text = tools.exec(INVENTORY)
    assert code == 0
    inventory_is_clean(text, 3)


@pytest.mark.usefixtures("leaky")
def test_nothing_of_the_interpreter_is_in_hooks_that_run_inside(tools: Ground) -> None:
    """createContainer's are the host's programs, startContainer's the image's; both get the state."""
    script = f"exec > /tmp/said 2>&1; {INVENTORY}"
    inside = Hook("/bin/sh", ("sh", "-c", script), ("PATH=/bin",))
    tools.output(replace(tools.config("true"), hooks=Hooks(start_container=(inside,))))
    with open(f"{tools.rootfs}/tmp/said") as file:
        inventory_is_clean(file.read(), 3)
    listing = f"ls -l /proc/self/fd > {tools.rootfs}/tmp/said"
    outside = Hook("/bin/sh", ("sh", "-c", listing), ("PATH=/bin",))
    tools.output(replace(tools.config("true"), hooks=Hooks(create_container=(outside,))))
    with open(f"{tools.rootfs}/tmp/said") as file:
        opened = [line.split()[8] for line in file if "->" in line]
    # The directory that ls reads is the fourth.
    assert set(opened) <= {"0", "1", "2", "3"}, "a tree, a cgroup or the line to the builder"


# CVE-2024-21626: a directory of the host's as the working directory


@pytest.mark.usefixtures("leaky")
def test_no_descriptor_serves_exec_as_working_directory(ground: Ground) -> None:
    ground.start(ground.config("sleep 60"))
    os.symlink("/proc/self/fd", f"{ground.rootfs}/way")
    for number in range(3, 24):
        for directory in (f"/proc/self/fd/{number}", f"/way/{number}", f"/proc/1/fd/{number}", f"/way/{number}/made"):
            with pytest.raises(MamushkaError, match="chdir to cwd"):
                ground.exec("true", cwd=directory)
    for made in (False, True):  # by create too, and by what an image's WorkingDir would say
        other = Ground(ground.state, ground.rootfs, f"{ground.name}-2")
        with pytest.raises(MamushkaError, match="chdir to cwd"):
            other.run(other.config("true", cwd="/way/7" + "/made" * made))


def test_a_working_directory_is_not_made_on_the_host(ground: Ground, tmp_path: Any) -> None:
    """While one process enters, another's root is the host's; a link to it must not be followed, nor made below."""
    host = tmp_path / "host"
    host.mkdir()
    os.symlink(f"/proc/{os.getpid()}/root{host}", f"{ground.rootfs}/way")
    other = Ground(ground.state, ground.rootfs, f"{ground.name}-2")
    ground.start(with_the_hosts_pids(ground.config("sleep 60", **ALL)))
    for directory in ("/way", "/way/made", "/way/made/deep"):
        with pytest.raises(MamushkaError, match="chdir to cwd"):
            ground.exec("true", cwd=directory, capabilities=None)
        with pytest.raises(MamushkaError, match="chdir to cwd"):
            other.run(with_the_hosts_pids(other.config("true", cwd=directory, **ALL)))
    assert os.listdir(host) == []


def with_the_hosts_pids(config: Config) -> Config:
    shared = tuple(namespace for namespace in config.linux.namespaces if namespace.type != "pid")
    return replace(config, linux=replace(config.linux, namespaces=shared))


def test_a_working_directory_that_is_made_is_only_then_the_users(ground: Ground) -> None:
    """Whoever shares the root swaps it for a link to a file that is not the user's."""
    with open(f"{ground.rootfs}/etc/secret", "w") as file:
        file.write("root's")
    place = f"{ground.rootfs}/made"

    def step() -> None:
        os.path.isdir(place) and not os.path.islink(place) and os.rmdir(place)
        os.symlink("/etc", place)
        os.unlink(place)

    from mamushka.spec.runtime import User

    with racing(step):
        attempts(ground, ground.config("true", cwd="/made", user=User(1000, 1000)), 40)
    assert os.stat(f"{ground.rootfs}/etc").st_uid == 0


# CVE-2025-31133: what masks


def test_a_race_for_the_null_device_unmasks_nothing(ground: Ground) -> None:
    """Who shares the root swaps /dev/null for a link to a file of procfs that would then be mounted read-write."""
    os.makedirs(f"{ground.rootfs}/dev")
    os.mknod(f"{ground.rootfs}/dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.symlink("/proc/sys/kernel/core_pattern", f"{ground.rootfs}/dev/evil")
    with open(f"{ground.rootfs}/etc/secret", "w") as file:
        file.write("secret")
    config = without(ground.config("stat -c '%F %t %T' /etc/secret; cat /etc/secret; echo end"), "/dev")
    config = replace(config, linux=replace(config.linux, masked_paths=("/etc/secret", "/proc/keys")))
    with racing(lambda: swap(f"{ground.rootfs}/dev/null", f"{ground.rootfs}/dev/evil")):
        said = attempts(ground, config, 60)
    assert set(said) <= {"character special file 1 3\nend\n"}


def test_masks_follow_the_mount_that_they_are_for(ground: Ground) -> None:
    """Who shares the root renames the mount point of /proc before anything is masked in it."""
    root = ground.rootfs
    os.makedirs(f"{root}/proc")
    hook = Hook("/bin/sh", ("sh", "-c", f"mv {root}/proc {root}/moved && mkdir {root}/proc"))
    config = ground.config("cat /moved/mounts; (: >> /moved/sys/kernel/panic) && echo writable; true")
    text = ground.output(replace(config, hooks=Hooks(create_runtime=(hook,))))
    mounted = {line.split()[1]: line.split()[3].split(",") for line in text.splitlines() if len(line.split()) == 6}
    assert "/moved" in mounted, "the hook moved it"
    for place in ("sys", "bus", "fs", "irq"):
        assert "ro" in mounted[f"/moved/{place}"]
    assert "/moved/keys" in mounted or not os.path.exists("/proc/keys")
    assert "writable" not in text


def test_a_race_for_proc_leaves_no_procfs_unmasked(ground: Ground) -> None:
    root = ground.rootfs
    os.makedirs(f"{root}/proc")
    os.makedirs(f"{root}/moved")
    script = """
for p in /proc /moved /proc.away; do
  [ -e $p/sys/kernel/panic ] && (: >> $p/sys/kernel/panic) 2>/dev/null && echo writable $p
done; true"""
    with racing(lambda: swap(f"{root}/proc", f"{root}/moved")):
        said = attempts(ground, ground.config(script), 60)
    assert set(said) <= {""}


# CVE-2025-52565: /dev/console


def test_a_race_for_the_terminal_mounts_nothing_else(ground: Ground) -> None:
    """Who shares the root swaps /dev/pts, in which a naive runtime finds the terminal by its number."""
    root = ground.rootfs
    os.makedirs(f"{root}/dev/pts")
    os.makedirs(f"{root}/dev/evil")
    for number in range(4):
        os.symlink("/proc/sys/kernel/core_pattern", f"{root}/dev/evil/{number}")
    config = ground.config("stat -c '%F %t' /dev/console; tty", terminal=True)
    config = without(config, "/dev")
    pts = Mount("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"))
    config = replace(config, mounts=(*config.mounts, pts))
    said = set()
    with racing(lambda: swap(f"{root}/dev/pts", f"{root}/dev/evil")):
        for _ in range(40):
            said.add(on_a_terminal(ground, config))
    assert all(text.startswith("character special file 88") for text in said if text), said


def on_a_terminal(ground: Ground, config: Config) -> str:
    try:
        started = ground.runtime.run(ground.name, ground.bundle(config), Stdio())
    except MamushkaError:
        return ""
    text = b""
    try:
        while part := os.read(started.console, 4096):
            text += part
    except OSError as error:  # the other side is closed
        assert error.errno == errno.EIO
    os.close(started.console)
    reap(started)
    ground.runtime.delete(ground.name, force=True)
    return text.decode()


def test_a_multiplexer_of_the_containers_own_is_no_terminal(tools: Ground) -> None:
    """exec finds the multiplexer where the container's root can put anything."""
    tools.start(tools.config("sleep 60", **ALL))
    assert (
        tools.exec(
            "umount /dev/pts; rm -rf /dev/pts; mkdir /dev/pts; ln -s /etc/passwd /dev/pts/ptmx", capabilities=None
        )[0]
        == 0
    )
    for prepare in ("true", "rm /dev/pts/ptmx; echo > /dev/pts/ptmx", "rm /dev/pts/ptmx; ln /dev/null /dev/pts/ptmx"):
        tools.exec(prepare, capabilities=None)
        with pytest.raises(MamushkaError):
            process = replace(tools.config("true").process, terminal=True)  # type: ignore[type-var]
            tools.runtime.exec(tools.name, process, Stdio())


# CVE-2025-52881, CVE-2019-16884, CVE-2019-19921: what is written below /proc


def test_a_procfs_that_is_a_tmpfs_is_not_written_to(ground: Ground) -> None:
    config = ground.config(
        "true", linux={"sysctl": {"net.ipv4.ip_forward": "1"}, "masked_paths": (), "readonly_paths": ()}
    )
    fake = tuple(Mount("/proc", "tmpfs", "tmpfs") if mount.type == "proc" else mount for mount in config.mounts)
    with pytest.raises(MamushkaError, match="proc"):
        ground.run(replace(config, mounts=fake))


def test_a_file_over_a_sysctl_is_not_written_to(ground: Ground, tmp_path: Any) -> None:
    (tmp_path / "fake").write_text("fake")
    over = Mount("/proc/sys/net/ipv4/ip_forward", "bind", str(tmp_path / "fake"), ("bind",))
    linux = {"sysctl": {"net.ipv4.ip_forward": "1"}, "masked_paths": (), "readonly_paths": ()}
    with pytest.raises(MamushkaError, match="ip_forward"):
        ground.run(ground.config("true", mounts=(over,), linux=linux))
    assert (tmp_path / "fake").read_text() == "fake"


FAKE = """
mkdir -p /fake/attr/apparmor /fake/self /fake/thread-self/attr/apparmor /fake/self/attr
for f in self/oom_score_adj thread-self/attr/exec thread-self/attr/apparmor/exec self/attr/exec
  do echo fake > /fake/$f; done
"""


@pytest.mark.parametrize("users", [False, True])
def test_exec_does_not_believe_the_containers_proc(tools: Ground, users: bool) -> None:
    """Its root has mounted something else there meanwhile: no score goes astray."""
    config = tools.config(f"{FAKE} mount --bind /fake /proc && echo > /tmp/ready; sleep 60", **ALL)
    config = replace(config, linux=replace(config.linux, masked_paths=(), readonly_paths=()))
    tools.start(mapped(tools, config) if users else config)
    wait_for(f"{tools.rootfs}/tmp/ready")
    with Output() as output:
        process = replace(config.process, args=("sleep", "60"), oom_score_adj=321)  # type: ignore[type-var]
        started = tools.runtime.exec(tools.name, process, Stdio(0, output.writing, output.writing))
        with open(f"/proc/{started.pid}/oom_score_adj") as file:
            assert file.read() == "321\n"
        os.kill(started.pid, 9)
        reap(started)
    with open(f"{tools.rootfs}/fake/self/oom_score_adj") as file:
        assert file.read() == "fake\n"


@pytest.mark.skipif(not apparmor(), reason="AppArmor is not enabled on this host; make lab has it")
def test_a_label_does_not_go_to_the_containers_proc(tools: Ground) -> None:
    config = tools.config(f"{FAKE} mount --bind /fake /proc && echo > /tmp/ready; sleep 60", **ALL)
    tools.start(replace(config, linux=replace(config.linux, masked_paths=(), readonly_paths=())))
    wait_for(f"{tools.rootfs}/tmp/ready")
    assert tools.exec("true", apparmor_profile="unconfined")[0] == 0
    for name in ("thread-self/attr/exec", "thread-self/attr/apparmor/exec", "self/attr/exec"):
        with open(f"{tools.rootfs}/fake/{name}") as file:
            assert file.read() == "fake\n"
    with pytest.raises(MamushkaError, match="no-such-profile"):
        tools.exec("true", apparmor_profile="no-such-profile")


def fake_proc(kind: str, directory: str) -> None:
    """In this process alone, something over the host's /proc, or over a file in it."""
    unshare(CLONE_NEWNS)
    mount.mount(None, b"/", None, mount.MS_REC | mount.MS_PRIVATE, None)
    os.makedirs(f"{directory}/self")
    with open(f"{directory}/self/oom_score_adj", "w") as file:
        file.write("fake")
    source, target = {
        "another directory": (directory, "/proc"),
        "a part of procfs": ("/proc/self", "/proc"),
        "a file": (f"{directory}/self/oom_score_adj", "/proc/self/oom_score_adj"),
        "a directory in it": (f"{directory}/self", f"/proc/{os.getpid()}"),
    }[kind]
    mount.mount(os.fsencode(source), os.fsencode(target), None, mount.MS_BIND, None)


@pytest.mark.parametrize("kind", ["another directory", "a part of procfs", "a file", "a directory in it"])
def test_the_hosts_own_proc_is_asked_what_it_is(tmp_path: Any, kind: str) -> None:
    """A mount that somebody propagated over it takes no score, no map of ids and no offset of clocks."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fake_proc(kind, str(tmp_path / "fake"))
            try:
                procfs.write("self/oom_score_adj", b"7")
            except OSError as error:
                code = 0 if error.errno in (errno.EXDEV, errno.EINVAL) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (tmp_path / "fake/self/oom_score_adj").read_text() == "fake"


# CVE-2026-41579, CVE-2026-47766: the image's own links where something is mounted


@pytest.mark.parametrize("place", ["proc", "sys", "sys/fs/cgroup", "dev", "dev/pts", "dev/shm", "dev/mqueue"])
@pytest.mark.parametrize("relative", [False, True])
def test_a_mount_point_that_is_a_link_stays_inside(ground: Ground, tmp_path: Any, place: str, relative: bool) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    way = "../" * 30 + str(outside)[1:] if relative else str(outside)
    link = f"{ground.rootfs}/{place}"
    os.makedirs(os.path.dirname(link), exist_ok=True)
    os.symlink(way, link)
    os.makedirs(f"{ground.rootfs}{outside}")
    config = ground.config("cat /proc/mounts /tmp/none || true; true")
    # What holds the link must be the image's own directory.
    above = place.partition("/")[0]
    if above != place:
        config = replace(config, mounts=tuple(m for m in config.mounts if m.destination != f"/{above}"))
    before = mounted_on_the_host(str(outside))
    code, _ = ground.run(config)
    assert code == 0
    assert os.listdir(outside) == [] and mounted_on_the_host(str(outside)) == before == []


def mounted_on_the_host(path: str) -> list[str]:
    with open("/proc/self/mounts") as file:
        return [line for line in file if line.split()[1].startswith(path)]


@pytest.mark.parametrize("place", ["dev", "proc", "sys"])
def test_a_mount_point_swapped_meanwhile_stays_inside(ground: Ground, tmp_path: Any, place: str) -> None:
    """A container that has the root as a volume swaps directories for links to the host's."""
    outside = tmp_path / "outside"
    outside.mkdir()
    os.makedirs(f"{ground.rootfs}/{place}")
    os.symlink(str(outside), f"{ground.rootfs}/evil")
    config = ground.config("true")
    bare = without(config, "/dev") if place == "dev" else config
    with racing(lambda: swap(f"{ground.rootfs}/{place}", f"{ground.rootfs}/evil")):
        attempts(ground, bare, 40)
    assert os.listdir(outside) == [] and mounted_on_the_host(str(outside)) == []


# crun 1.28 and 1.29: paths of cgroups, and ids


@pytest.mark.parametrize(
    "path", ["..", "/..", "/../x", "a/../../b", "/mamushka/../..", "/a/./b", "/", "", "/x\n/y", "/" + "n" * 256]
)
def test_a_cgroup_leaves_its_place_by_no_path(ground: Ground, path: str) -> None:
    if path:
        with pytest.raises(Invalid):
            resolve(path, ground.name)
        with pytest.raises(Invalid):
            ground.run(ground.config("true", linux={"cgroups_path": path}))
        assert not os.path.exists(ground.state) or os.listdir(ground.state) == []
    else:
        assert resolve(path, ground.name) == f"/mamushka/{ground.name}"


@pytest.mark.parametrize(
    "id",
    ["", ".", "..", "../x", "a/b", "a/../b", "/abs", "a\n", "a b", "a\0b", "\u0661", "é", "a:b", "%2e%2e", "x" * 256],
)
def test_an_id_is_a_name_and_no_path(ground: Ground, id: str) -> None:
    os.makedirs(ground.state, exist_ok=True)
    outside = os.path.join(os.path.dirname(ground.state), "x")
    os.makedirs(outside)
    with pytest.raises(Invalid):
        Record(ground.state, id)
    runtime = ground.runtime
    acts: list[Callable[[], object]] = [
        lambda: runtime.run(id, ground.bundle(ground.config("true")), Stdio()),
        lambda: runtime.delete(id, force=True),
        lambda: runtime.state(id),
        lambda: runtime.kill(id, 9, all=True),
        lambda: runtime.exec(id, ground.config("true").process, Stdio()),  # type: ignore[arg-type]
    ]
    for act in acts:
        with pytest.raises(Invalid):
            act()
    assert os.path.isdir(outside) and os.listdir(ground.state) == []
