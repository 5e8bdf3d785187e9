"""``--init``: a small first process that reaps orphans and passes signals on.

It must be a static program, since it runs in any image, and none of ours: a forked Python as first process would show
the host's interpreter inside as /proc/1/exe. So it is the host's: the one that Docker, tini's or podman's package
brings, mounted read-only.
"""

from __future__ import annotations

import os

from mamushka.errors import Unsupported
from mamushka.spec.runtime import Config, Mount
from mamushka.values import replace

_PROGRAMS = ("docker-init", "tini-static", "catatonit")
_PLACES = ("/usr/bin", "/usr/libexec/docker", "/usr/libexec/podman", "/usr/local/bin", "/usr/sbin", "/sbin")
# /dev is the workload's own memory, so the place can be made however read-only or small the image is.
INSIDE = "/dev/init"


def find() -> str:
    """The host's program. Unsupported when it has none."""
    for name in _PROGRAMS:
        for place in _PLACES:
            if os.access(f"{place}/{name}", os.X_OK):
                return f"{place}/{name}"
    raise Unsupported(
        f"no init program on this host: looked for {', '.join(_PROGRAMS)}",
        hint="apt install catatonit, or run without --init",
    )


def below(config: Config) -> Config:
    """The bundle with the init program as its first process."""
    mount = Mount(INSIDE, "bind", find(), ("bind", "rprivate", "ro"))
    process = config.process
    assert process is not None
    arguments = (INSIDE, "--", *process.args)
    return replace(config, mounts=(*config.mounts, mount), process=replace(process, args=arguments))
