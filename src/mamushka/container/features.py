"""What this wall can do on this host. runtime-spec, features.md."""

from __future__ import annotations

import os
from errno import EBADF

from mamushka.container import options, resctrl
from mamushka.container.attributes import MEMORY_FLAGS, MEMORY_MODES
from mamushka.container.cgroups.bus import reachable
from mamushka.container.cgroups.layout import layout
from mamushka.container.defaults import LANDLOCK
from mamushka.container.namespaces import FLAGS
from mamushka.container.privileges import apparmor, selinux
from mamushka.container.seccomp import ACTIONS
from mamushka.container.seccomp import FLAGS as SECCOMP_FLAGS
from mamushka.container.seccomp import describe as filters
from mamushka.linux import landlock
from mamushka.linux.capabilities import NAMES
from mamushka.linux.fd import AT_EMPTY_PATH
from mamushka.linux.libseccomp import ARCHITECTURES
from mamushka.linux.mount import MOUNT_ATTR_IDMAP, MOUNT_ATTR_SIZE, mount_attr, mount_setattr
from mamushka.linux.seccomp import flag_available
from mamushka.spec.runtime import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_OPERATORS = ("EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ")
# Annotations of a config.json that change what this runtime does, and so what whoever may set them may do.
UNSAFE_ANNOTATIONS: tuple[str, ...] = ()


def features() -> Mapping[str, object]:
    """The document that ``features`` prints.

    Lists are of what is understood, whatever the host has, as the specification wants it. ``enabled`` and the like
    say whether it works here: a caller that reads them is about to start a container on this host.
    """
    found, version = layout(), landlock.abi()
    rdt = bool(resctrl.mounted())
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": VERSION,
        "hooks": HOOKS,
        "mountOptions": options.known(),
        "linux": {
            "namespaces": tuple(FLAGS),
            "capabilities": NAMES,
            "cgroup": {
                "v1": bool(found.v1),
                "v2": bool(found.unified),
                "systemd": reachable(user=False),
                "systemdUser": reachable(user=True),
                "rdma": "rdma" in found.controllers or "rdma" in found.v1,
            },
            "seccomp": {
                "enabled": filters()[0],
                "actions": tuple(ACTIONS),
                "operators": tuple(f"SCMP_CMP_{name}" for name in _OPERATORS),
                "archs": tuple(ARCHITECTURES),
                "knownFlags": tuple(SECCOMP_FLAGS),
                "supportedFlags": tuple(name for name, flag in SECCOMP_FLAGS.items() if flag_available(flag)),
            },
            "apparmor": {"enabled": apparmor()},
            "selinux": {"enabled": selinux()},
            "intelRdt": {"enabled": rdt, "schemata": rdt, "monitoring": rdt and resctrl.measures()},
            "memoryPolicy": _memory_policy(),
            "mountExtensions": {"idmap": {"enabled": _maps_ids()}},
            "netDevices": {"enabled": True},
        },
        "annotations": {
            "org.mamushka.runtime": "container",
            **({f"{LANDLOCK}.abi": str(version)} if version else {}),
            **_libseccomp(),
        },
        "potentiallyUnsafeConfigAnnotations": UNSAFE_ANNOTATIONS,
    }


def _memory_policy() -> dict[str, object]:
    """Nothing to choose from where the kernel was built without NUMA."""
    there = os.path.exists("/proc/self/numa_maps")
    return {"modes": tuple(MEMORY_MODES) if there else (), "flags": tuple(MEMORY_FLAGS) if there else ()}


def _maps_ids() -> bool:
    """Whether the kernel looks for the user namespace of an idmapped mount, which here is no descriptor."""
    try:
        asked = mount_attr(attr_set=MOUNT_ATTR_IDMAP, userns_fd=(1 << 31) - 1)
        mount_setattr(-1, b"", AT_EMPTY_PATH, asked, MOUNT_ATTR_SIZE)
    except OSError as error:
        return error.errno == EBADF
    return False


def _libseccomp() -> dict[str, str]:
    """The library's version, under the name by which runc tells it."""
    works, what = filters()
    return {"io.github.seccomp.libseccomp.version": what.removeprefix("libseccomp ")} if works else {}
