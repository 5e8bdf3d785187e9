"""What this wall can do on this host. runtime-spec, features.md."""

from __future__ import annotations

import os

from mamushka.container import options
from mamushka.container.cgroups.bus import reachable
from mamushka.container.cgroups.layout import layout
from mamushka.container.defaults import LANDLOCK
from mamushka.container.namespaces import FLAGS
from mamushka.container.privileges import apparmor, selinux
from mamushka.container.seccomp import ACTIONS
from mamushka.container.seccomp import FLAGS as SECCOMP_FLAGS
from mamushka.linux import landlock
from mamushka.linux.capabilities import NAMES
from mamushka.spec.runtime import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_NAMESPACE_FILES = {"network": "net", "mount": "mnt"}
_OPERATORS = ("EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ")
_ARCHITECTURES = (
    "SCMP_ARCH_X86", "SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64", "SCMP_ARCH_RISCV64",
)  # fmt: skip


def features() -> Mapping[str, object]:
    """The document that ``features`` prints."""
    found, version = layout(), landlock.abi()
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": VERSION,
        "hooks": HOOKS,
        "mountOptions": options.known(),
        "linux": {
            "namespaces": [
                kind for kind in FLAGS if os.path.exists(f"/proc/self/ns/{_NAMESPACE_FILES.get(kind, kind)}")
            ],
            "capabilities": NAMES,
            "cgroup": {
                "v1": bool(found.v1),
                "v2": bool(found.unified),
                "systemd": reachable(user=False),
                "systemdUser": reachable(user=True),
            },
            "seccomp": {
                "enabled": os.path.exists("/proc/sys/kernel/seccomp"),
                "actions": tuple(ACTIONS),
                "operators": tuple(f"SCMP_CMP_{name}" for name in _OPERATORS),
                "archs": _ARCHITECTURES,
                "knownFlags": tuple(SECCOMP_FLAGS),
                "supportedFlags": tuple(SECCOMP_FLAGS),
            },
            "apparmor": {"enabled": apparmor()},
            "selinux": {"enabled": selinux()},
            "intelRdt": {"enabled": False},
            "memoryPolicy": {},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": False},
        },
        "annotations": {
            "org.mamushka.runtime": "container",
            **({f"{LANDLOCK}.abi": str(version)} if version else {}),
        },
    }
