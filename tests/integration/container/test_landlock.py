"""The further wall of Landlock, by trying: what its policy allows works, and all else that it handles does not."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import pytest

from mamushka.errors import Invalid, MamushkaError, NotFound, Unsupported
from mamushka.linux import landlock
from mamushka.runtime import CannotExecute
from mamushka.spec.runtime import Config, Hook, Hooks, IDMapping, Mount, Namespace, User
from mamushka.values import replace

from .conftest import Ground

ABI = landlock.abi()
pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(not ABI, reason="this kernel has no Landlock"),
]

# Everything that the kernel can restrict, and on an older one in so many words.
AGE = "" if ABI >= 5 else f",abi:{ABI}"


def needs(abi: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(abi > ABI, reason=f"Landlock's ABI is {ABI}, and this needs {abi}")


def restricted(config: Config, policy: str) -> Config:
    return replace(config, annotations={"org.mamushka.landlock": policy})


def said(ground: Ground, policy: str, script: str, **more: Any) -> list[str]:
    """What a shell script behind a policy says."""
    return ground.output(restricted(ground.config(script, **more), policy + AGE)).splitlines()


# Files

TRIALS = """
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo $name; fi; }
try read-etc cat /etc/passwd
try list-etc ls /etc
try read-data cat /data/file
try list-data ls /data
try write-data sh -c 'echo more >> /data/file'
try truncate-data sh -c ': > /data/file'
try make-data touch /data/new
try mkdir-data mkdir /data/directory
try link-data ln -s x /data/link
try fifo-data mkfifo /data/fifo
try remove-data rm /data/old
try rmdir-data rmdir /data/empty
try write-etc sh -c 'echo more >> /etc/passwd'
try make-root touch /new
try hardlink-across ln /data/file /other/linked
try execute-data /data/program
true
"""
EVERYTHING = {
    "read-etc", "list-etc", "read-data", "list-data", "write-data", "truncate-data", "make-data", "mkdir-data",
    "link-data", "fifo-data", "remove-data", "rmdir-data", "write-etc", "make-root", "hardlink-across", "execute-data",
}  # fmt: skip
READS = {"read-etc", "list-etc", "read-data", "list-data"}
DATA = {name for name in EVERYTHING if name.endswith("-data")}


@pytest.fixture
def ground(ground: Ground) -> Ground:
    """With something to try things on."""
    root = ground.rootfs
    for name in ("data/empty", "other", "proc", "dev"):
        os.makedirs(f"{root}/{name}")
    for name in ("data/file", "data/old", "data/moved"):
        with open(f"{root}/{name}", "w") as file:
            file.write("content")
    with open(f"{root}/data/program", "w") as file:
        file.write("#!/bin/sh\n")
    os.chmod(f"{root}/data/program", 0o755)
    for name in ("ln", "mkdir", "mkfifo", "mv", "rm", "rmdir"):
        os.symlink("busybox", f"{root}/bin/{name}")
    return ground


@pytest.mark.parametrize(
    ("policy", "allowed"),
    [
        ("rw", EVERYTHING),
        ("ro,rw:/dev", READS | {"execute-data"}),
        ("ro,rw:/data,rw:/dev", READS | DATA),
        ("ro,rw:/data,rw:/other,rw:/dev", READS | DATA | {"hardlink-across"}),
        # A right is not moved along: in /other the file would gain the one to be executed.
        (
            "rx:/bin,read:/etc,read+write+make+remove+refer:/data,rw:/other,rw:/dev",
            READS | DATA - {"execute-data"},
        ),
        ("rx:/bin,rw:/dev,read:/data", {"read-data", "list-data"}),
        ("rx:/bin,rw:/dev,read_file:/data", {"read-data"}),
        ("rx:/bin,rw:/dev,read_dir:/data", {"list-data"}),
        ("rx:/bin,rw:/dev,read_file+write_file:/data/file", {"read-data", "write-data"}),
        ("rx:/bin,rw:/dev,rw:/data/file", {"read-data", "write-data", "truncate-data"}),
        ("rx:/bin,rw:/dev,make_reg+read_file+write_file:/data", {"make-data", "read-data", "write-data"}),
        ("rx:/bin,rw:/dev,make_dir:/data", {"mkdir-data"}),
        ("rx:/bin,rw:/dev,make_sym:/data", {"link-data"}),
        ("rx:/bin,rw:/dev,make_fifo:/data", {"fifo-data"}),
        ("rx:/bin,rw:/dev,remove_file:/data", {"remove-data"}),
        ("rx:/bin,rw:/dev,remove_dir:/data", {"rmdir-data"}),
        ("rx:/bin,rw:/dev,remove:/data", {"remove-data", "rmdir-data"}),
        ("rx:/bin,rw:/dev,rx:/data", {"read-data", "list-data", "execute-data"}),
        ("rx:/bin,rw:/dev,v1.read_write:/data", DATA - {"truncate-data", "execute-data"}),
        # To link and rename across directories is denied to who is restricted at all, unless it is allowed.
        ("handled:make_reg+make_dir,make_dir:/data", EVERYTHING - {"make-data", "make-root", "hardlink-across"}),
    ],
)
def test_files(ground: Ground, policy: str, allowed: set[str]) -> None:
    if ABI < 3:  # who may write a file cannot be kept from truncating it
        allowed = allowed - {"truncate-data"} | ({"truncate-data"} if "write-data" in allowed else set())
    assert set(said(ground, policy, TRIALS)) == allowed


@pytest.fixture
def python(ground: Ground) -> Ground:
    """With this interpreter, and what of the host's it needs, below the same paths."""
    for name in ("lib", "lib64"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{ground.rootfs}/{name}")
    return ground


def answers(ground: Ground, policy: str, code: str, **more: Any) -> list[str]:
    """What Python code behind a policy prints; ``attempt(function, …)`` is "ok" or the name of the error."""
    places = {os.path.realpath(path) for path in ("/usr", "/lib", "/lib64", sys.base_prefix) if os.path.isdir(path)}
    mounts = [Mount(path, "bind", path, ("rbind", "ro")) for path in sorted(places)]
    return ground.output(
        restricted(
            ground.config(sys._base_executable, "-I", "-S", "-c", ATTEMPT + code, mounts=mounts, **more),  # type: ignore[attr-defined]
            policy + AGE,
        )
    ).split()


ATTEMPT = """
import errno, os, socket, signal, fcntl, struct
def attempt(function, *arguments):
    try:
        function(*arguments)
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]
"""


def test_renames_across_directories(python: Ground) -> None:
    code = """
os.chdir("/data")
print(attempt(os.rename, "old", "new"), attempt(os.rename, "moved", "/other/moved"))
print(attempt(os.rename, "new", "empty/new"))
"""
    assert answers(python, "ro,rw:/data", code) == ["ok", "EACCES", "ok"]
    assert answers(
        python, "ro,rw:/data,make_reg:/other", "print(attempt(os.rename, '/data/moved', '/other/moved'))"
    ) == ["EACCES" if ABI == 1 else "EXDEV"]
    assert answers(python, "ro,rw:/data,rw:/other", "print(attempt(os.rename, '/data/moved', '/other/moved'))") == [
        "ok"
    ]


@needs(5)
def test_commands_to_devices(python: Ground) -> None:
    code = """
tty = os.open("/dev/ptmx", os.O_RDWR)
print(attempt(fcntl.ioctl, tty, 0x80045430, bytes(4)))  # TIOCGPTN
"""
    assert answers(python, "ro,read+write:/dev", code) == ["EACCES"]
    assert answers(python, "ro,read+write+ioctl_dev:/dev", code) == ["ok"]


def test_what_was_opened_before_stays(ground: Ground) -> None:
    """The streams are the caller's; so is a terminal, with its commands."""
    assert said(ground, "rx:/bin", "echo said; stat -c %F /dev/null") == ["said", "character special file"]


# Ports, neighbours


def listening(code: str) -> str:
    """Code with sockets that listen on the ports 8080 and 8081 of the container's own loopback."""
    return f"""
def bind(port):
    server = socket.socket(); server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", port)); server.listen(); servers.append(server)
def connect(port):
    with socket.socket() as client: client.connect(("127.0.0.1", port))
servers = []
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
{code}
"""


@needs(4)
def test_ports(python: Ground) -> None:
    code = listening("print(attempt(bind, 8080), attempt(bind, 8081), attempt(connect, 8080), attempt(connect, 8081))")
    assert answers(python, "bind:8080", code, capabilities=None) == ["ok", "EACCES", "ok", "ECONNREFUSED"]
    assert answers(python, "bind:8080-8081,connect:8081", code, capabilities=None) == ["ok", "ok", "EACCES", "ok"]
    assert answers(python, "connect_tcp:none", code, capabilities=None) == ["ok", "ok", "EACCES", "EACCES"]
    assert answers(python, "bind_tcp+connect_tcp:8080", code, capabilities=None) == ["ok", "EACCES", "ok", "EACCES"]
    assert answers(python, "connect:8080", "print(attempt(os.mkdir, '/free'))") == ["ok"], "files are not handled"


SERVICE = """
import socket, time
server = socket.socket(socket.AF_UNIX); server.bind(chr(0) + "here"); server.listen()
open("/tmp/ready", "w").close()
time.sleep(60)
"""


@needs(6)
def test_neighbours(python: Ground) -> None:
    """What was executed beside the first process is in a domain of its own."""
    places = {os.path.realpath(path) for path in ("/usr", "/lib", "/lib64", sys.base_prefix) if os.path.isdir(path)}
    mounts = [Mount(path, "bind", path, ("rbind", "ro")) for path in sorted(places)]
    interpreter = sys._base_executable  # type: ignore[attr-defined]
    code = """
def connect():
    with socket.socket(socket.AF_UNIX) as client: client.connect(chr(0) + "here")
print(attempt(connect), attempt(os.kill, 1, 0), attempt(os.kill, os.getpid(), 0))
"""
    for policy, expected in (
        ("scope:signal+abstract_unix_socket", ["EPERM", "EPERM", "ok"]),
        ("scope:signal", ["ok", "EPERM", "ok"]),
        ("scope:abstract_unix_socket", ["EPERM", "ok", "ok"]),
        ("ro,rw:/tmp", ["ok", "ok", "ok"]),
    ):
        python.start(restricted(python.config(interpreter, "-I", "-S", "-c", SERVICE, mounts=mounts), policy))
        wait_for(f"{python.rootfs}/tmp/ready")
        _, text = python.exec(interpreter, "-I", "-S", "-c", ATTEMPT + code)
        python.runtime.delete(python.name, force=True)
        os.unlink(f"{python.rootfs}/tmp/ready")
        assert text.split() == expected, policy


def wait_for(path: str) -> None:
    deadline = time.monotonic() + 10
    while not os.path.exists(path):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@needs(7)
def test_what_the_audit_log_is_told(ground: Ground) -> None:
    assert said(ground, "ro,log:new_exec_on+same_exec_off+subdomains_off", "echo ran") == ["ran"]


# Every process of the container


def test_exec_is_restricted_alike(ground: Ground) -> None:
    ground.start(restricted(ground.config("sleep 60"), "ro,rw:/data" + AGE))
    script = "touch /data/exec && echo data; touch /exec || echo refused; grep NoNewPrivs /proc/self/status"
    for no_new_privileges in (True, False):
        code, text = ground.exec(script, no_new_privileges=no_new_privileges)
        assert code == 0 and {"data", "refused"} <= set(text.split("\n"))
        assert text.split()[-1] == str(int(no_new_privileges)), "the restriction needs the one or the other"
    _, text = ground.exec("touch /data/user || echo refused; touch /tmp/user || echo refused", user=User(1000, 1000))
    assert text.count("refused") == 2


def test_users_are_restricted_by_what_root_can_find(ground: Ground) -> None:
    """A rule's path is found before the process is nobody."""
    os.makedirs(f"{ground.rootfs}/data/deep/own")
    os.chown(f"{ground.rootfs}/data/deep/own", 1000, 1000)
    os.chmod(f"{ground.rootfs}/tmp", 0o1777)
    os.chmod(f"{ground.rootfs}/data/deep", 0o711)
    script = "touch /data/deep/own/file && echo own; touch /tmp/file || echo refused; id -u"
    for more in ({"no_new_privileges": True}, {"no_new_privileges": False}, {"capabilities": None}):
        config = restricted(ground.config(script, user=User(1000, 1000), **more), "ro,rw:/data/deep/own" + AGE)
        text = ground.output(config)
        assert text.split()[0] == "own" and text.split()[-2:] == ["refused", "1000"]


def test_in_a_user_namespace(ground: Ground) -> None:
    for path, _, names in os.walk(ground.rootfs):
        for name in ("", *names):
            os.chown(f"{path}/{name}", 100000, 100000, follow_symlinks=False)
    ids = (IDMapping(0, 100000, 65536),)
    config = ground.config("touch /data/x && echo data; touch /x || echo refused")
    linux = replace(
        config.linux, uid_mappings=ids, gid_mappings=ids, namespaces=(*config.linux.namespaces, Namespace("user"))
    )
    for no_new_privileges in (True, False):
        assert config.process
        process = replace(config.process, no_new_privileges=no_new_privileges)
        config = replace(config, linux=linux, process=process)
        assert {"data", "refused"} <= set(ground.output(restricted(config, "ro,rw:/data" + AGE)).split("\n"))


def test_a_filter_that_forbids_landlock_comes_after_it(ground: Ground) -> None:
    from mamushka.spec.runtime import Seccomp, SyscallRule

    names = ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self")
    rules = (SyscallRule(names, "SCMP_ACT_KILL_PROCESS"),)
    for no_new_privileges in (True, False):
        config = ground.config(
            "touch /x || echo refused",
            linux={"seccomp": Seccomp("SCMP_ACT_ALLOW", syscalls=rules)},
            no_new_privileges=no_new_privileges,
        )
        assert "refused" in ground.output(restricted(config, "ro" + AGE))


def test_hooks_are_the_callers_and_free(ground: Ground) -> None:
    hook = Hook("/bin/touch", ("touch", "/hooked"))
    config = restricted(ground.config("touch /x || echo refused"), "ro" + AGE)
    assert "refused" in ground.output(replace(config, hooks=Hooks(start_container=(hook,))))
    assert os.path.exists(f"{ground.rootfs}/hooked")


def test_a_created_container_is_restricted_when_it_starts(ground: Ground) -> None:
    reading, writing = os.pipe()
    started = ground.create(restricted(ground.config("touch /x || echo refused"), "ro" + AGE), writing)
    os.close(writing)
    ground.runtime.start(ground.name)
    os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)
    assert b"refused" in os.read(reading, 4096)
    os.close(reading)


def test_nobody_takes_it_off_again(ground: Ground) -> None:
    """Root inside, with every capability and no filter, mounts nothing over it."""
    config = ground.config("mount -t tmpfs none /other && echo mounted; touch /other/x && echo touched; true",
                           capabilities=None, no_new_privileges=False, linux={"seccomp": None})  # fmt: skip
    assert "mounted" in ground.output(config)
    assert "mounted" not in ground.output(restricted(config, "ro" + AGE))
    os.unlink(f"{ground.rootfs}/other/x") if os.path.exists(f"{ground.rootfs}/other/x") else None


def test_features_tell_the_version(ground: Ground) -> None:
    annotations = ground.runtime.features()["annotations"]
    assert isinstance(annotations, dict) and annotations["org.mamushka.landlock.abi"] == str(ABI)


# What cannot be


def test_a_link_of_the_images_leads_no_rule_elsewhere(ground: Ground, tmp_path: Any) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name, target in (("all", "/"), ("data/sub", "../etc"), ("out", str(outside)), ("self", "/proc/self/root")):
        os.symlink(target, f"{ground.rootfs}/{name}")
        with pytest.raises(Invalid, match="symbolic links"):
            ground.run(restricted(ground.config("true"), f"ro,rw:/{name}" + AGE))
    with pytest.raises(Invalid):
        ground.run(restricted(ground.config("true"), "ro,rw:/all/data" + AGE))
    # Followed, it is a path of the container's, whatever lies there on the host.
    with pytest.raises(NotFound):
        ground.run(restricted(ground.config("true"), "follow,ro,rw:/out" + AGE))
    assert said(ground, "follow,ro,rw:/data/sub", "touch /etc/x && echo etc; touch /x 2>&- || echo no") == ["etc", "no"]
    with pytest.raises(MamushkaError):  # no link of procfs, followed or not
        ground.run(restricted(ground.config("true"), "follow,ro,rw:/self" + AGE))


def test_a_link_that_appears_while_it_runs_leads_no_exec_elsewhere(ground: Ground) -> None:
    ground.start(
        restricted(
            ground.config("rmdir /data/empty; ln -s / /data/empty; sleep 60"), "ro,rw:/data,rw:/data/empty" + AGE
        )
    )
    wait_for(f"{ground.rootfs}/data/empty/etc/passwd")
    with pytest.raises(Invalid):
        ground.exec("true")


def test_a_path_that_is_not_there_is_named(ground: Ground) -> None:
    with pytest.raises(NotFound, match="/nowhere"):
        ground.run(restricted(ground.config("true"), "ro,rw:/nowhere" + AGE))
    assert os.listdir(ground.state) == []


def test_a_right_that_means_nothing_there_is_named(ground: Ground) -> None:
    with pytest.raises(Invalid, match="/data/file"):
        ground.run(restricted(ground.config("true"), "ro,make_reg:/data/file" + AGE))


def test_a_program_that_may_not_be_executed(ground: Ground) -> None:
    with pytest.raises(CannotExecute, match="permission denied"):
        ground.run(restricted(ground.config("true"), "ro:/etc" + AGE))


@pytest.mark.parametrize(
    ("found", "policy", "message", "hint"),
    [
        (0, "ro", "this kernel has none", "lsm=landlock"),
        (2, "ro", "truncate .ABI 3., ioctl_dev .ABI 5. is beyond this kernel, which has ABI 2", "abi:2"),
        (3, "connect:443", "connect_tcp .ABI 4. .* ABI 3", "leave it out"),
        (5, "scope:signal", "signal .ABI 6. .* ABI 5", "leave it out"),
        (6, "ro,log:new_exec_on", "log_new_exec_on .ABI 7. .* ABI 6", "leave it out"),
    ],
)
def test_what_this_kernel_cannot_restrict_is_refused(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, found: int, policy: str, message: str, hint: str
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: found)
    with pytest.raises(Unsupported, match=message) as caught:
        ground.run(restricted(ground.config("true"), policy))
    assert hint in caught.value.hint
    assert not os.path.exists(ground.state) or os.listdir(ground.state) == []


def test_a_document_of_the_landlock_project(ground: Ground) -> None:
    version = min(ABI, 5)
    policy = {
        "ruleset": [{"handledAccessFs": [f"v{version}.all"]}],
        "pathBeneath": [
            {"allowedAccess": [f"v{version}.read_execute"], "parent": ["/bin"]},
            {"allowedAccess": ["read_file"], "parent": ["/etc/passwd", "/data"]},
        ],
    }
    script = "cat /etc/passwd >&2 && echo passwd; cat /data/file > /tmp/x || echo refused"
    text = ground.output(restricted(ground.config(script), json.dumps(policy)))
    assert "passwd" in text.split("\n") and "refused" in text
