"""The first file system of a machine in the lab: a static busybox, modules, and what is to be done with them."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from mamushka.machine.boot import initramfs
from mamushka.machine.boot.initramfs import Member, program
from mamushka.machine.boot.modules import Modules, module_name
from tests.lab import steady
from tests.lab.kernel import Kernel

# What is needed to reach the host's files, and what udev makes a node for elsewhere; anything else the kernel asks
# modprobe for, as everywhere.
MODULES = ("virtio_pci", "virtio_blk", "ext4", "virtiofs", "overlay", "tun")
EXIT = "@@lab: exit"
# A disk of the machine's own, where tests work; nothing of the host's that is wanted lies below.
SCRATCH = "/run/scratch"
# A directory of the host's, the only one that the machine writes to: what outlives it.
ARTEFACTS = "/run/artefacts"

_INIT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /lower /top /new
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /order); do insmod /modules/$module || echo "the lab's $module does not load"; done
mount -t virtiofs -o ro root /lower || poweroff -f
mount -t tmpfs -o size=90% tmpfs /top
mkdir /top/upper /top/work
mount -t overlay -o lowerdir=/lower,upperdir=/top/upper,workdir=/top/work overlay /new
mkdir -p /new/lib/modules/$(uname -r)
mount --bind /lower$(cat /modules.path) /new/lib/modules/$(uname -r)
for place in proc sys dev; do mount --move /$place /new/$place; done
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts devpts /new/dev/pts
mount -t securityfs securityfs /new/sys/kernel/security
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
for place in run dev/shm; do mount -t tmpfs -o mode=1777 tmpfs /new/$place; done
mkdir /new/run/modprobe.d
cp /modprobe /new/run/modprobe.d/lab.conf
for wait in 1 2 3 4 5; do test -b /new/dev/vda || sleep 1; done
mkdir /newSCRATCH
mount -t ext4 /new/dev/vda /newSCRATCH && chmod 1777 /newSCRATCH
mkdir /newARTEFACTS
mount -t virtiofs artefacts /newARTEFACTS
chmod 755 /new/run /new/root
ifconfig lo 127.0.0.1 up
hostname lab
cp /command /new/run/command
test -d /units || exec switch_root /new /bin/sh /run/command
rm -f /new/.dockerenv
mkdir -p /new/run/systemd
cp -r /units /new/run/systemd/system
export SYSTEMD_GENERATOR_PATH=/run/systemd/none SYSTEMD_UNIT_PATH=/run/systemd/transient:/run/systemd/system
exec switch_root /new /lib/systemd/systemd
"""
# modprobe.d(5). KVM's module comes with machines that keep the kernel from changing itself.
_MODPROBE = "install kvm_amd /sbin/modprobe --ignore-install kvm_amd && {python} {steady}\n"
# The command's own shell: whatever becomes of it, the machine says how it ended; whoever listens ends the machine.
_COMMAND = """cd {directory}
{environment}
(
{command}
) </dev/null
echo "
{exit} $?"
sleep 60
"""


def archive(
    busybox: str,
    kernel: Kernel,
    command: str,
    *,
    directory: str,
    environment: Mapping[str, str],
    units: Mapping[str, str],
) -> bytes:
    """The whole initramfs; ``command`` is a shell's, performed in ``directory``. With ``units`` by systemd."""
    modules = Modules(kernel.modules)
    files = {f"{module_name(path)}.ko": modules.read(path) for path in modules.order(MODULES)}
    exports = "\n".join(f"export {name}={_quoted(text)}" for name, text in environment.items())
    text = _COMMAND.format(directory=_quoted(directory), environment=exports, command=command, exit=EXIT)
    init = _INIT.replace("SCRATCH", SCRATCH).replace("ARTEFACTS", ARTEFACTS)
    return initramfs.archive(
        [
            program("bin/busybox", _read(busybox)),
            program("init", init.encode()),
            Member("modules.path", content=kernel.modules.encode()),
            Member("order", content="".join(f"{name}\n" for name in files).encode()),
            Member("command", content=text.encode()),
            Member("modprobe", content=_MODPROBE.format(python=sys.executable, steady=steady.__file__).encode()),
            *(Member(f"modules/{name}", content=content) for name, content in files.items()),
            *(Member(f"units/{name}", content=text.encode()) for name, text in units.items()),
        ]
    )


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
