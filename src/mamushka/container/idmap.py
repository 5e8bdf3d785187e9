"""Mounts whose owners are shifted: an idmapped mount takes its mapping from a user namespace. mount_setattr(2)."""

from __future__ import annotations

import os

from mamushka.container.namespaces import map_ids
from mamushka.errors import Invalid, Unsupported
from mamushka.linux.fd import AT_EMPTY_PATH, AT_RECURSIVE
from mamushka.linux.mount import MOUNT_ATTR_IDMAP, MOUNT_ATTR_SIZE, mount_attr, mount_setattr
from mamushka.linux.nobody import made
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
    try:
        return made("user", lambda: unshare(CLONE_NEWUSER), lambda pid: map_ids(pid, uids, gids))
    except OSError as error:
        raise Unsupported(
            f"cannot make a user namespace: {error.strerror}", hint="see /proc/sys/user/max_user_namespaces"
        ) from error
