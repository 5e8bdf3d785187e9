"""What ``doctor`` tries. Each attempt does the real thing, answers what it found, and raises why it cannot.

An attempt runs in a process of its own and in namespaces of its own where it can; files and control groups,
which outlive a process, it removes itself.
"""

from __future__ import annotations

import os

from mamushka.errors import Denied, Unsupported
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


@value
class Probe:
    """One thing to try."""

    name: str
    title: str
    attempt: Callable[[str], str]  # takes the data root
    mend: str  # the command or step that usually helps
    essential: bool = True


def _privileges(_data_root: str) -> str:
    from mamushka.container.privileges import lacking

    if os.geteuid() != 0:
        raise Denied(f"uid {os.geteuid()} is not root")
    missing = lacking()
    return "root" + (f", without {', '.join(missing)}" if missing else " with all capabilities")


def _namespaces(_data_root: str) -> str:
    from mamushka.linux import process

    kinds = {
        "mnt": process.CLONE_NEWNS, "pid": process.CLONE_NEWPID, "net": process.CLONE_NEWNET,
        "uts": process.CLONE_NEWUTS, "ipc": process.CLONE_NEWIPC, "cgroup": process.CLONE_NEWCGROUP,
    }  # fmt: skip
    for flag in kinds.values():
        process.unshare(flag)
    return " ".join(kinds)


def _user_namespaces(_data_root: str) -> str:
    from mamushka.linux import process

    process.unshare(process.CLONE_NEWUSER)
    return "can be made"


def _overlay(data_root: str) -> str:
    from mamushka.storage import overlay

    with _Directory(data_root) as path:
        for name in ("lower", "upper", "work"):
            os.mkdir(f"{path}/{name}")
        os.close(overlay.mount([f"{path}/lower"], upper=f"{path}/upper", work=f"{path}/work"))
    return f"layers can be stacked on the file system of {data_root}"


def _storage(data_root: str) -> str:
    with _Directory(data_root) as path:
        with open(f"{path}/file", "wb") as file:
            file.write(b"mamushka")
            file.flush()
            os.fsync(file.fileno())
        free = os.statvfs(path)
    from mamushka.interfaces.docker.units import human_size

    return f"{data_root} can be written, {human_size(free.f_bavail * free.f_frsize)} free"


class _Directory:
    """A directory on the data root's file system, also where the root itself does not exist yet; gone afterwards."""

    def __init__(self, data_root: str) -> None:
        self._near = data_root
        while not os.path.isdir(self._near):
            self._near = os.path.dirname(self._near)
        self._path = ""

    def __enter__(self) -> str:
        import tempfile

        self._path = tempfile.mkdtemp(prefix=".mamushka-doctor-", dir=self._near)
        return self._path

    def __exit__(self, *exc: object) -> None:
        import shutil

        shutil.rmtree(self._path)


def _cgroup(_data_root: str) -> str:
    from mamushka.container import cgroups
    from mamushka.spec.runtime import Memory, Pids, Resources

    _, found = cgroups.describe()
    group = cgroups.open_cgroup(f"/mamushka-doctor-{os.getpid()}")
    group.create(Resources(memory=Memory(limit=64 << 20), pids=Pids(limit=16)))
    group.remove()
    return f"limits of memory and processes can be set ({found})"


def _seccomp(_data_root: str) -> str:
    from mamushka.container import seccomp
    from mamushka.linux import process

    # Without the cache: the library itself is to be tried.
    program = seccomp.filter(seccomp.default_profile(()), cache="")
    process.prctl(process.PR_SET_NO_NEW_PRIVS, 1)
    program.install()
    return "the default filter can be compiled and loaded"


def _landlock(_data_root: str) -> str:
    from mamushka.linux.landlock import abi

    found = abi()
    if not found:
        raise Unsupported("this kernel has no Landlock, or was booted without")
    return f"ABI {found}: policies can restrict {_restrictable(found)}"


def _restrictable(abi: int) -> str:
    from mamushka.linux.landlock import FS, NET, SCOPE

    lacking = [name for name, (_, since) in FS.items() if since > abi]
    words = ["files" + (f" (but not {', '.join(lacking)})" if lacking else "")]
    words += [name for name, (_, since) in (*NET.items(), *SCOPE.items()) if since <= abi]
    return ", ".join(words)


def _network(_data_root: str) -> str:
    from mamushka.linux import process
    from mamushka.linux.nftables import Nftables
    from mamushka.linux.rtnetlink import open_route
    from mamushka.network.network import Network, Scope
    from mamushka.network.reconcile import establish

    process.unshare(process.CLONE_NEWNET)
    network = Network("doctor", "mkdoctor0", "192.0.2.0/24", "192.0.2.1")
    filter = Nftables()
    with open_route() as route, filter:
        establish(route, filter, Scope(table="mamushka-doctor", bridge="mkdoctor0"), network)
    return "a bridge with its packet filter can be made"


def _firewall(_data_root: str) -> str:
    from mamushka.linux.nftables import Nftables

    with Nftables() as filter:
        dropping = filter.forward_drops()
    if dropping:
        raise Unsupported(f"what is forwarded is dropped by {', '.join(dropping)}, ours or not")
    return "the host's own rules do not drop what is forwarded"


def _kvm(_data_root: str) -> str:
    """By running a few instructions in a machine: not every /dev/kvm can run an operating system."""
    from mamushka.machine.executors.kvm import probe

    found = probe.probe()
    if not found.usable:
        raise Unsupported(f"KVM is {found.kind}: {found.reason}")
    slower = f": {found.reason}" if found.reason else ""
    return f"KVM is {found.kind}, {found.nanoseconds:.1f} ns an instruction in a guest's kernel{slower}"


def _machine_kernel(_data_root: str) -> str:
    from mamushka.engine import kernel_image, machine_configuration
    from mamushka.machine.agent.program import guest_program
    from mamushka.machine.boot import kernels

    guest_program(os.uname().machine)
    configured = machine_configuration.read().kernel
    if configured.startswith(kernel_image.PREFIX):
        return f"{configured}, looked into when a workload is made"
    kernel = kernels.choose(configured=configured)
    lacking = f", without {', '.join(kernel.missing)}" if kernel.missing else ""
    return f"{kernel.image} (Linux {kernel.version}{lacking})"


def _machine_root(_data_root: str) -> str:
    from mamushka.engine import kernel_image, machine_configuration
    from mamushka.engine.machine_root import kernel_obstacle
    from mamushka.machine.boot import kernels

    configured = machine_configuration.read().kernel
    if configured.startswith(kernel_image.PREFIX):
        return f"as {configured} can"
    why = kernel_obstacle(kernels.choose(configured=configured))
    if why:
        raise Unsupported(f"machines cannot mount their layers themselves: {why}; their roots are shared by virtiofsd")
    return "layers as disks: EROFS in mapped memory, below a disk of its own"


def _virtiofsd(_data_root: str) -> str:
    from mamushka.machine.devices.virtio.fs import find

    found = find()
    return f"{found.path}, {'in Rust' if found.rust else 'the one of QEMU'}"


def _vhost(_data_root: str) -> str:
    from mamushka.linux.vhost import open_net

    fd = open_net()
    if fd < 0:
        raise Unsupported("the kernel does not move a machine's packets (/dev/vhost-net): the monitor does, slowly")
    os.close(fd)
    return "the kernel moves a machine's packets (vhost-net)"


def _decompression(_data_root: str) -> str:
    from mamushka.image.compression import decompress

    if b"".join(decompress([_FRAME], size=len(_FRAME), what="the probe")) != b"mamushka":
        raise Unsupported("zstd answers with other bytes than were compressed")
    import isal.isal_zlib  # without it gzip still works, three times slower

    return f"zstd, and gzip through isal {isal.__version__}"


# "mamushka", compressed by zstd.
_FRAME = b"(\xb5/\xfd \x08A\x00\x00mamushka"


def _registries(_data_root: str) -> str:
    from mamushka.image.remote import Remotes

    remotes = Remotes(os.environ)
    remotes.close()
    if remotes.config_path and os.path.exists(remotes.config_path):
        return f"configuration is valid; credentials in {remotes.config_path}"
    return "configuration is valid; no credentials"


def _checkpoint(_data_root: str) -> str:
    from mamushka.container.criu import service

    service.check_feature("mem_track", "checkpoint")
    return "criu {}.{} works on this kernel".format(*service.version())


def _kernel(_data_root: str) -> str:
    release = os.uname().release
    major, minor = (int("".join(filter(str.isdigit, part)) or 0) for part in release.split(".")[:2])
    if (major, minor) < (5, 12):
        raise Unsupported(f"Linux {release} lacks mount_setattr, which came with 5.12")
    return f"Linux {release}"


# What --runtime vm needs beyond that, or is better with.
MACHINES = (
    Probe("kvm", "virtual machines", _kvm, "modprobe kvm_intel || modprobe kvm_amd; usermod -aG kvm $USER; in a "
          "virtual machine, switch nested virtualization on where it runs; or choose --runtime container",
          essential=False),
    Probe("machine-kernel", "machines' kernel", _machine_kernel, "name one with --kernel", essential=False),
    Probe("machine-root", "machines' layers", _machine_root, "apt-get install e2fsprogs, and a kernel with "
          "virtio_pmem, erofs, virtio_blk and ext4", essential=False),
    Probe("virtiofsd", "machines' directories", _virtiofsd, "apt-get install virtiofsd; needed for volumes, "
          "bind mounts and roots that are directories", essential=False),
    Probe("vhost", "machines' packets", _vhost, "modprobe vhost_net", essential=False),
)  # fmt: skip

PROBES = (
    Probe("kernel", "kernel", _kernel, "boot Linux 5.12 or later; 6.5 or later is best"),
    Probe("privileges", "privileges", _privileges, "run mamushka as root: sudo mamushka doctor"),
    Probe("namespaces", "namespaces", _namespaces, "sysctl -w user.max_mnt_namespaces=1000 (and pid, net, uts, ipc)"),
    Probe("storage", "data root", _storage, "give another place: mamushka --data-root PATH, or free some space"),
    Probe("overlay", "overlay", _overlay, "modprobe overlay; the data root must not be on overlay or NFS itself"),
    Probe("cgroup", "control groups", _cgroup, "mount -t cgroup2 none /sys/fs/cgroup"),
    Probe("seccomp", "seccomp", _seccomp, "apt-get install libseccomp2"),
    Probe("landlock", "Landlock", _landlock, "boot Linux 5.13 or later with lsm=landlock,…", essential=False),
    Probe("network", "network", _network, "modprobe -a bridge veth nf_tables nft_nat; or run with --network none"),
    Probe("firewall", "host's firewall", _firewall, "let the bridges through, with Docker: iptables -I DOCKER-USER "
          "-i mamushka0 -j ACCEPT; iptables -I DOCKER-USER -o mamushka0 -j ACCEPT", essential=False),
    Probe("registries", "registries", _registries, "correct the file that is named"),
    Probe("decompression", "decompression", _decompression, "pip install isal backports.zstd", essential=False),
    Probe("user", "user namespaces", _user_namespaces, "sysctl -w user.max_user_namespaces=15000", essential=False),
    Probe("checkpoint", "checkpoints", _checkpoint, "apt-get install criu; from Linux 6.13 on a criu of 4.1 or later",
          essential=False),
    *MACHINES,
)  # fmt: skip
