"""From a workload to its bundle: settings and image, in Docker's defaults, as a runtime-spec configuration."""

from __future__ import annotations

import os

from mamushka.engine import limits, mounts, userns, users
from mamushka.errors import Invalid
from mamushka.linux.process import initial
from mamushka.spec import runtime as spec
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from mamushka.engine.settings import Settings
    from mamushka.engine.workload import Workload

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT_BYTES_MAX = 1 << 21  # the kernel's own bound for arguments and environment together is a little above


@value
class Blueprint:
    """What settings and image say together; fixed when the workload is created."""

    command: tuple[str, ...]
    environment: tuple[str, ...]
    working_directory: str
    user: str
    volumes: tuple[str, ...]
    exposed: tuple[str, ...]
    stop_signal: str
    labels: Mapping[str, str] = EMPTY


def blueprint(settings: Settings, config: Mapping[str, Any]) -> Blueprint:
    """Bring the image's ``config`` object and the settings together. Invalid when nothing is to be run."""
    entrypoint = _strings(config.get("Entrypoint"))
    command = settings.command or _strings(config.get("Cmd"))
    if settings.entrypoint is not None:
        entrypoint = settings.entrypoint
        command = settings.command  # another entrypoint forgets the image's arguments, as with Docker
    if not entrypoint + command:
        raise Invalid(
            f"no command specified: neither the image {settings.image} nor the request names one",
            hint="append the program and its arguments",
        )
    directory = settings.working_directory or config.get("WorkingDir") or "/"
    if not directory.startswith("/"):
        raise Invalid(f"the working directory {directory!r} is invalid, it needs to be an absolute path")
    return Blueprint(
        command=entrypoint + command,
        environment=environment(_strings(config.get("Env")), settings.environment),
        working_directory=os.path.normpath(directory),
        user=settings.user or config.get("User") or "",
        volumes=tuple(sorted(config.get("Volumes") or ())),
        exposed=tuple(sorted(config.get("ExposedPorts") or ())),
        stop_signal=settings.stop_signal or config.get("StopSignal") or "SIGTERM",
        labels={**(config.get("Labels") or {}), **settings.labels},
    )


def _strings(item: Any) -> tuple[str, ...]:
    """A list of an image configuration; a lone string is Docker's old shell form."""
    if isinstance(item, str):
        return ("/bin/sh", "-c", item)
    return tuple(str(entry) for entry in item or ())


def environment(*layers: Sequence[str]) -> tuple[str, ...]:
    """NAME=value entries; later ones replace earlier ones of the same name, in place."""
    found: dict[str, str] = {}
    for layer in layers:
        for entry in layer:
            name, equals, _ = entry.partition("=")
            if not name or "\0" in entry:
                raise Invalid(f"invalid environment variable: {entry!r}")
            if equals:
                found[name] = entry
            else:
                found.pop(name, None)
    if sum(map(len, found.values())) > _ENVIRONMENT_BYTES_MAX:
        raise Invalid(f"an environment of more than {_ENVIRONMENT_BYTES_MAX} bytes, which no program can be given")
    return tuple(found.values())


def build(workload: Workload, root: int, sources: mounts.Sources, network: str | None, owner: str = "") -> spec.Config:
    """The configuration.

    ``root`` is the mounted root, for the accounts in it. ``network`` is the path of a network namespace, empty for a
    new one without links, None for the host's; ``owner`` that of the user namespace, where it has users of its own.
    """
    settings = workload.settings
    security = settings.security
    account = users.find(root, workload.user, settings.groups)
    nodes, rules = limits.devices(settings)
    return spec.Config(
        oci_version=spec.VERSION,
        process=process(workload, workload.command, account, terminal=settings.terminal),
        root=spec.Root("rootfs", readonly=settings.read_only),
        hostname=_hostname(workload),
        domainname=settings.domainname,
        mounts=mounts.mounts(settings, sources),
        annotations=told(settings),
        linux=spec.Linux(
            uid_mappings=userns.mappings(workload),
            gid_mappings=userns.mappings(workload),
            resources=limits.resources(settings.limits, (*_device_rules(), *rules)),
            cgroups_path=f"/mamushka/{workload.id}",
            namespaces=_namespaces(settings, sources.joined, network, owner),
            devices=tuple(nodes),
            sysctl=_sysctls(workload, network),
            seccomp=_seccomp(settings),
            masked_paths=() if security.privileged else _paths(security.mask, security.unmask, masked=True),
            readonly_paths=() if security.privileged else _paths((), security.unmask, masked=False),
        ),
    )


def process(
    workload: Workload,
    command: Sequence[str],
    account: users.Account,
    *,
    terminal: bool,
    variables: Sequence[str] = (),
    working_directory: str = "",
    privileged: bool = False,
    size: tuple[int, int] | None = None,
) -> spec.Process:
    """A process of the workload: its first, or a further one."""
    from mamushka.container.privileges import capability_set

    settings, security = workload.settings, workload.settings.security
    privileged = privileged or security.privileged
    names = capability_set(security.capabilities_add, (*security.capabilities_drop, *_withheld(settings)), privileged)
    # Who is not root gets its rights from file capabilities or not at all, unless they were added on purpose.
    effective = names if account.user.uid == 0 else ()
    fixed = [f"PATH={PATH}", f"HOSTNAME={workload.hostname}", *(["TERM=xterm"] if terminal else [])]
    entries = environment(fixed, workload.environment, variables)
    if not any(entry.startswith("HOME=") for entry in entries):
        entries = (*entries, f"HOME={account.home}")
    return spec.Process(
        cwd=working_directory or workload.working_directory,
        args=tuple(command),
        env=entries,
        terminal=terminal,
        console_size=spec.Box(*size) if size else None,
        user=account.user,
        capabilities=spec.Capabilities(bounding=names, effective=effective, permitted=effective),
        rlimits=tuple(limits.rlimit(item) for item in settings.ulimits),
        no_new_privileges=security.no_new_privileges and not privileged,
        apparmor_profile="" if privileged or security.apparmor == "unconfined" else security.apparmor,
        selinux_label=":".join(security.selinux_label),
        oom_score_adj=settings.limits.oom_score_adj or None,
    )


def told(settings: Settings) -> Mapping[str, str]:
    """The user's own, and what a wall reads there."""
    policy = settings.security.landlock
    if not policy:
        return settings.annotations
    from mamushka.container.defaults import LANDLOCK

    return {**settings.annotations, LANDLOCK: policy}


def _withheld(settings: Settings) -> tuple[str, ...]:
    """Without root the routes alone refuse link-local addresses, and raw packets pass them by. Decision 0032."""
    added = {word.upper().removeprefix("CAP_") for word in settings.security.capabilities_add}
    return () if initial() or added & {"ALL", "NET_RAW"} else ("NET_RAW",)


def _hostname(workload: Workload) -> str:
    return "" if workload.settings.namespaces.uts == "host" else workload.hostname


def _device_rules() -> tuple[spec.DeviceRule, ...]:
    from mamushka.container.defaults import DEVICE_RULES

    return DEVICE_RULES


def _namespaces(
    settings: Settings, joined: Mapping[str, str], network: str | None, owner: str
) -> tuple[spec.Namespace, ...]:
    """New ones, but for those that are the host's or another workload's (``joined``: kind to path)."""
    asked = settings.namespaces
    kinds = {"pid": asked.pid, "ipc": asked.ipc, "uts": asked.uts, "cgroup": asked.cgroup}
    made = [spec.Namespace("mount")]
    made += [spec.Namespace(kind, joined.get(kind, "")) for kind, mode in kinds.items() if mode != "host"]
    if userns.mapped(settings):
        made.append(spec.Namespace("user", owner))
    if asked.time == "private":
        made.append(spec.Namespace("time"))
    if network is not None:
        made.append(spec.Namespace("network", network))
    return tuple(made)


def _sysctls(workload: Workload, network: str | None) -> Mapping[str, str]:
    given = workload.settings.sysctls
    for name in given:
        if network is None and name.startswith("net."):
            raise Invalid(f"sysctl {name!r} not allowed in host network namespace")
    if workload.runtime != "vm":
        return given
    from mamushka.network.namespace import DEFAULT_SYSCTLS

    # Our namespaces have them already, but it is the machine's own kernel that its programs ask.
    return {**DEFAULT_SYSCTLS, **given}


def _seccomp(settings: Settings) -> spec.Seccomp | None:
    from mamushka.container import seccomp
    from mamushka.container.privileges import capability_set

    security = settings.security
    if security.seccomp == "unconfined" or (security.privileged and not security.seccomp):
        return None
    names = capability_set(security.capabilities_add, security.capabilities_drop, security.privileged)
    machine = os.uname().machine
    if security.seccomp:
        from mamushka.container.profiles.docker import parse_profile

        return parse_profile(security.seccomp.encode(), names, machine)
    return seccomp.default_profile(names, machine)


def _paths(further: Sequence[str], unmask: Sequence[str], *, masked: bool) -> tuple[str, ...]:
    from mamushka.container.defaults import MASKED_PATHS, READONLY_PATHS

    if "ALL" in unmask:
        return tuple(further)
    default = MASKED_PATHS if masked else READONLY_PATHS
    return (*(path for path in default if path not in unmask), *further)
