"""Every namespace, new or joined; what is set in it, and what must not be."""

from __future__ import annotations

import os
import subprocess

import pytest

from mamushka.container import defaults
from mamushka.container.cgroups.layout import UNIFIED, layout
from mamushka.errors import Invalid, NotFound, Unsupported
from mamushka.spec.runtime import IDMapping, Namespace, TimeOffset
from mamushka.values import replace

from .conftest import Ground

pytestmark = [pytest.mark.root, pytest.mark.lab]

FILES = {"pid": "pid", "network": "net", "ipc": "ipc", "uts": "uts", "mount": "mnt", "cgroup": "cgroup", "user": "user"}
IDS = (IDMapping(0, 100000, 65536),)
USER = {"namespaces": (*defaults.NAMESPACES, Namespace("user")), "uid_mappings": IDS, "gid_mappings": IDS}


def own(file: str) -> str:
    return os.readlink(f"/proc/self/ns/{file}")


def test_the_default_namespaces_are_new(ground: Ground) -> None:
    seen = ground.output(
        ground.config("for n in pid net ipc uts mnt cgroup user; do readlink /proc/self/ns/$n; done")
    ).split()
    for kind, link in zip(("pid", "net", "ipc", "uts", "mnt", "cgroup"), seen, strict=False):
        assert link != own(kind), kind
    assert seen[6] == own("user")


def test_what_is_not_asked_for_is_shared(ground: Ground) -> None:
    few = tuple(entry for entry in defaults.NAMESPACES if entry.type in ("pid", "mount"))
    config = ground.config("for n in net ipc uts cgroup; do readlink /proc/self/ns/$n; done", linux={"namespaces": few})
    config = replace(config, hostname="", mounts=tuple(m for m in config.mounts if m.type not in ("sysfs", "mqueue")))
    assert ground.output(config).split() == [own(kind) for kind in ("net", "ipc", "uts", "cgroup")]


@pytest.mark.parametrize("kind", ["network", "ipc", "uts", "pid", "cgroup"])
def test_a_namespace_is_joined_by_path(ground: Ground, kind: str) -> None:
    """The path may be a descriptor's, so that a namespace without any process or mount can be handed over."""
    ground.start(ground.config("sleep 60"))
    pid = ground.runtime.state(ground.name).pid
    other = Ground(ground.state, ground.rootfs, f"{ground.name}-2")
    descriptor = os.open(f"/proc/{pid}/ns/{FILES[kind]}", os.O_RDONLY)
    kept = (
        *(entry for entry in defaults.NAMESPACES if entry.type != kind),
        Namespace(kind, f"/proc/self/fd/{descriptor}"),
    )
    try:
        config = other.config(f"readlink /proc/self/ns/{FILES[kind]}", linux={"namespaces": kept})
        if kind == "uts":
            config = replace(config, hostname="")
        assert other.output(config).strip() == os.readlink(f"/proc/{pid}/ns/{FILES[kind]}")
    finally:
        os.close(descriptor)


def test_a_user_namespace_is_joined_by_path(ground: Ground) -> None:
    """With the namespaces that belong to it, as it is itself: root there has no power over others."""
    os.chown(ground.rootfs, 100000, 100000)
    ground.start(ground.config("sleep 60", linux=USER))
    pid = ground.runtime.state(ground.name).pid
    other = Ground(ground.state, ground.rootfs, f"{ground.name}-2")
    config = other.config(
        "readlink /proc/self/ns/user; id -u; cat /proc/self/uid_map",
        linux={"namespaces": (*defaults.NAMESPACES, Namespace("user", f"/proc/{pid}/ns/user"))},
    )
    link, *rest = other.output(config).split()
    assert link == os.readlink(f"/proc/{pid}/ns/user") != own("user")
    assert rest == ["0", "0", "100000", "65536"]


def test_clocks_are_joined_by_path(ground: Ground) -> None:
    clocks = {"namespaces": (*defaults.NAMESPACES, Namespace("time")), "time_offsets": {"boottime": TimeOffset(10**6)}}
    ground.start(ground.config("sleep 60", linux=clocks))
    pid = ground.runtime.state(ground.name).pid
    other = Ground(ground.state, ground.rootfs, f"{ground.name}-2")
    joined = (*defaults.NAMESPACES, Namespace("time", f"/proc/{pid}/ns/time"))
    assert float(other.output(other.config("cat /proc/uptime", linux={"namespaces": joined})).split()[0]) > 10**6


def test_a_mount_namespace_is_joined_by_path(ground: Ground) -> None:
    """As runc has it: the bundle's root is put into that namespace, and becomes its root for whoever is in it."""
    seen = []
    for run in (ground.output, ground.runc):
        # It answers when it runs already: its root is about to be another, in which there is no program.
        holding = ["unshare", "--mount", "--propagation", "private", "cat"]
        with subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as holder:
            assert holder.stdin is not None and holder.stdout is not None
            holder.stdin.write(b"\n")
            assert holder.stdout.read(1) == b"\n"
            namespace = os.readlink(f"/proc/{holder.pid}/ns/mnt")
            kept = tuple(entry for entry in defaults.NAMESPACES if entry.type != "mount")
            config = ground.config(
                "readlink /proc/self/ns/mnt; ls /; touch /tmp/here",
                linux={"namespaces": (*kept, Namespace("mount", f"/proc/{holder.pid}/ns/mnt"))},
            )
            link, *names = run(config).split()
            assert link == namespace != own("mnt")
            assert os.path.exists(f"{ground.rootfs}/tmp/here") and not os.path.exists("/tmp/here")
            seen.append((names, sorted(os.listdir(f"/proc/{holder.pid}/root"))))
            holder.kill()
    assert seen[0] == seen[1] and "boot" not in seen[0][0]


def test_a_user_namespace_makes_root_nobody(ground: Ground) -> None:
    os.chown(ground.rootfs, 100000, 100000)  # who makes the mount points in it
    script = "id -u; cat /proc/self/uid_map; touch /dev/shm/x; stat -c %u /dev/shm/x; echo x > /dev/null; echo done"
    uid, *mapping, made, done = ground.output(ground.config(script, linux=USER)).split()
    assert (uid, mapping, made, done) == ("0", ["0", "100000", "65536"], "0", "done")


def test_a_container_that_may_write_to_its_cgroup_owns_it(ground: Ground) -> None:
    """config-linux.md#cgroup-ownership: the directory and what is safe in it, on cgroup v2, and no limit."""
    if layout().kind != UNIFIED:
        pytest.skip("only cgroup v2 can be delegated, and this host has v1")
    os.chown(ground.rootfs, 100000, 100000)
    script = (
        "stat -c %u /sys/fs/cgroup /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/memory.max; "
        "/bin/busybox mkdir /sys/fs/cgroup/own && echo made; echo 1 > /sys/fs/cgroup/memory.max || echo refused"
    )
    config = ground.config(script, linux=USER)
    assert ground.run(config)[1].split()[:3] == ["65534"] * 3, "a read-only one stays the host's"
    writable = tuple(
        replace(entry, options=tuple(word for word in entry.options if word != "ro"))
        if entry.destination == "/sys/fs/cgroup"
        else entry
        for entry in config.mounts
    )
    text = ground.run(replace(config, mounts=writable))[1].split()
    assert text[:3] == ["0", "0", "65534"] and "made" in text and "refused" in text


def test_clocks_are_moved(ground: Ground) -> None:
    linux = {
        "namespaces": (*defaults.NAMESPACES, Namespace("time")),
        "time_offsets": {"boottime": TimeOffset(1_000_000), "monotonic": TimeOffset(5)},
    }
    inside = float(ground.output(ground.config("cat /proc/uptime", linux=linux)).split()[0])
    with open("/proc/uptime") as file:
        assert inside - float(file.read().split()[0]) > 999_000


def test_names_and_sysctls(ground: Ground) -> None:
    sysctls = {"net.ipv4.ip_forward": "1", "kernel/shmmni": "77", "fs.mqueue.msg_max": "9"}
    config = ground.config(
        "hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni "
        "/proc/sys/fs/mqueue/msg_max",
        linux={"sysctl": sysctls},
    )
    assert ground.output(replace(config, domainname="dom")).split() == ["box", "dom", "1", "77", "9"]


@pytest.mark.parametrize("name", ["kernel.panic", "vm.swappiness", "net/../kernel/panic", "kernel.core_pattern"])
def test_a_sysctl_of_the_host_is_refused(ground: Ground, name: str) -> None:
    with pytest.raises(Invalid, match="sysctl"):
        ground.run(ground.config("true", linux={"sysctl": {name: "1"}}))
    assert not os.path.exists(ground.state)


@pytest.mark.parametrize("kind", sorted(FILES))
def test_the_hosts_own_namespace_by_path_is_shared(ground: Ground, kind: str) -> None:
    """Whoever names it must not get by the rules for a container's own: a sysctl, a name, a root for the host."""
    others = tuple(entry for entry in defaults.NAMESPACES if entry.type != kind)
    config = ground.config(
        f"readlink /proc/self/ns/{FILES[kind]}",
        linux={"namespaces": (*others, Namespace(kind, f"/proc/self/ns/{FILES[kind]}"))},
    )
    if kind == "mount":
        with pytest.raises(Unsupported, match="apart from the host's"):
            ground.run(config)
    elif kind == "uts":
        with pytest.raises(Invalid, match="host name"):
            ground.run(config)
    elif kind == "network":
        with pytest.raises(Invalid, match="no network namespace of its own"):
            ground.run(replace(config, linux=replace(config.linux, sysctl={"net.ipv4.ip_forward": "1"})))
    elif kind != "pid":  # proc(5) shows nobody's processes but its own namespace's
        assert ground.output(config).strip() == own(FILES[kind])


def test_a_sysctl_of_a_shared_namespace_is_refused(ground: Ground) -> None:
    shared = tuple(entry for entry in defaults.NAMESPACES if entry.type != "network")
    with pytest.raises(Invalid, match="no network namespace of its own"):
        ground.run(ground.config("true", linux={"namespaces": shared, "sysctl": {"net.ipv4.ip_forward": "1"}}))


@pytest.mark.parametrize(
    ("namespaces", "kind", "message"),
    [
        ((Namespace("pid"),), Unsupported, "a mount namespace apart"),
        ((Namespace("mount"), Namespace("moon")), Invalid, "no namespace of the type 'moon'"),
        ((Namespace("mount"), Namespace("mount")), Invalid, "asked for twice"),
        ((Namespace("mount"), Namespace("network", "/nowhere")), NotFound, "/nowhere"),
        ((Namespace("mount"), Namespace("network", "relative")), Invalid, "not absolute"),
        ((Namespace("mount"), Namespace("network", "/proc/self/ns/uts")), Invalid, "no namespace of that type"),
        ((Namespace("mount"), Namespace("network", "/etc/passwd")), Invalid, "no namespace of that type"),
        ((Namespace("mount"), Namespace("user")), Invalid, "uidMappings"),
    ],
)
def test_wrong_namespaces_are_named(
    ground: Ground, namespaces: tuple[Namespace, ...], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        ground.run(ground.config("true", linux={"namespaces": namespaces}))
