"""The first file system of a machine in the lab: a static busybox, modules, and what is to be done with them.

An initramfs is cpio archives one after the other, here one, in the format newc.
Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import os

from tests.lab.kernel import Kernel

# What is needed to reach the host's files; anything else the kernel asks modprobe for, as everywhere.
MODULES = ("virtio_pci", "virtio_blk", "ext4", "virtiofs", "overlay")
EXIT = "@@lab: exit"
# A disk of the machine's own, where tests work; nothing of the host's that is wanted lies below.
SCRATCH = "/run/scratch"

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
for wait in 1 2 3 4 5; do test -b /new/dev/vda || sleep 1; done
mkdir /newSCRATCH
mount -t ext4 /new/dev/vda /newSCRATCH && chmod 1777 /newSCRATCH
chmod 755 /new/run
ifconfig lo 127.0.0.1 up
hostname lab
cp /command /new/run/command
exec switch_root /new /bin/sh /run/command
"""
# The command's own shell: whatever becomes of it, the machine says how it ended, and ends.
_COMMAND = """cd {directory}
{environment}
(
{command}
) </dev/null
echo "
{exit} $?"
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


def archive(busybox: str, kernel: Kernel, command: str, directory: str, environment: dict[str, str]) -> bytes:
    """The whole initramfs; ``command`` is a shell's, performed in ``directory``."""
    modules = kernel.needed(*MODULES)
    exports = "\n".join(f"export {name}={_quoted(text)}" for name, text in environment.items())
    text = _COMMAND.format(directory=_quoted(directory), environment=exports, command=command, exit=EXIT)
    order = "\n".join(os.path.basename(path) for path in modules) + "\n"
    files = [("bin/busybox", 0o100755, _read(busybox)), ("init", 0o100755, _INIT.replace("SCRATCH", SCRATCH).encode())]
    files += [
        ("modules.path", 0o100644, kernel.modules.encode()),
        ("order", 0o100644, order.encode()),
        ("command", 0o100644, text.encode()),
    ]
    files += [(f"modules/{os.path.basename(path)}", 0o100644, _read(path)) for path in modules]
    entries = [("bin", 0o040755, b""), ("modules", 0o040755, b""), *files]
    numbered = (_entry(number, *entry) for number, entry in enumerate(entries, 1))
    return b"".join([*numbered, _entry(0, "TRAILER!!!", 0, b"")])


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    """A header of thirteen numbers in eight hexadecimal digits each, the name, the content; each padded to four."""
    raw = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(raw), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + raw
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
