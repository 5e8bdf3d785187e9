"""Mounts whose owners are shifted: an idmapped mount takes its mapping from a user namespace. mount_setattr(2)."""

from __future__ import annotations

import os

from mamushka.container.namespaces import map_ids
from mamushka.errors import Invalid, Unsupported
from mamushka.linux.fd import AT_EMPTY_PATH, AT_RECURSIVE
from mamushka.linux.mount import MOUNT_ATTR_IDMAP, MOUNT_ATTR_SIZE, mount_attr, mount_setattr
from mamushka.linux.process import CLONE_NEWUSER, unshare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.spec.runtime import IDMapping


def apply(
    tree: int, uids: tuple[IDMapping, ...], gids: tuple[IDMapping, ...], *, recursive: bool, destination: str
) -> None:
    """Shift the owners in a detached tree: ids on disk are the container's, ids seen are the host's."""
    if not uids or not gids:
        raise Invalid(f"the mount at {destination} is to map ids, and neither it nor the container says how")
    namespace = user_namespace(uids, gids)
    try:
        attributes = mount_attr(attr_set=MOUNT_ATTR_IDMAP, userns_fd=namespace)
        flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
        mount_setattr(tree, b"", flags, attributes, MOUNT_ATTR_SIZE)
    except OSError as error:
        raise Unsupported(
            f"cannot map the ids of the mount at {destination}: {error.strerror}",
            hint="the filesystem, or this kernel's version of it, may not support idmapped mounts",
        ) from error
    finally:
        os.close(namespace)


def user_namespace(uids: tuple[IDMapping, ...], gids: tuple[IDMapping, ...]) -> int:
    """A user namespace with these mappings and nobody in it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            unshare(CLONE_NEWUSER)
            os.write(writing, b"\n")
            os.read(reading, 1)  # until it is killed: this side of the pipe is held open by itself
        finally:
            os._exit(1)
    os.close(writing)
    try:
        if not os.read(reading, 1):
            raise Unsupported("cannot make a user namespace", hint="see /proc/sys/user/max_user_namespaces")
        map_ids(pid, uids, gids)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(reading)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
