"""The parts of a container's inspect document that repeat what was asked for: Config, HostConfig, Mounts."""

from __future__ import annotations

from mamushka.container.defaults import MASKED_PATHS, READONLY_PATHS
from mamushka.values import EMPTY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from mamushka.engine.settings import Mount, Port, Settings, Throttle
    from mamushka.engine.workload import Workload


def config(workload: Workload) -> dict[str, Any]:
    """What the workload is."""
    settings = workload.settings
    return {
        "Hostname": workload.hostname,
        "Domainname": settings.domainname,
        "User": settings.user,
        "AttachStdin": settings.stdin,
        "AttachStdout": True,
        "AttachStderr": True,
        "ExposedPorts": {port: {} for port in (*settings.expose, *_exposed(settings.ports))},
        "Tty": settings.terminal,
        "OpenStdin": settings.stdin,
        "StdinOnce": settings.stdin,
        "Env": list(workload.environment),
        "Cmd": list(settings.command) or None,
        "Image": workload.image_name,
        "Volumes": {destination: {} for destination in _unnamed(workload)} or None,
        "WorkingDir": settings.working_directory,
        "Entrypoint": None if settings.entrypoint is None else list(settings.entrypoint),
        "Labels": dict(settings.labels),
        "OnBuild": None,
        "StopSignal": settings.stop_signal or "SIGTERM",
        "StopTimeout": settings.stop_timeout,
        **_health(settings),
    }


def _unnamed(workload: Workload) -> list[str]:
    """Where the image or a bare ``-v`` asked for a volume without a name."""
    named = {mount.destination for mount in workload.settings.mounts if mount.source}
    return [destination for destination, _ in workload.volumes if destination not in named]


def _exposed(ports: Iterable[Port]) -> list[str]:
    return [f"{port.port}/{port.protocol}" for port in ports]


def _health(settings: Settings) -> dict[str, Any]:
    health = settings.health
    if health is None:
        return {}
    return {
        "Healthcheck": {
            "Test": list(health.test),
            "Interval": int(health.interval * 1e9),
            "Timeout": int(health.timeout * 1e9),
            "StartPeriod": int(health.start_period * 1e9),
            "Retries": health.retries,
        }
    }


# What Docker has and this engine has not, as Docker says it where it is not used: clients read these keys.
_WITHOUT_MEANING: Mapping[str, Any] = {
    "BlkioWeightDevice": [],
    "Cgroup": "",
    "CgroupParent": "",
    "ConsoleSize": [0, 0],
    "ContainerIDFile": "",
    "CpuCount": 0,
    "CpuPercent": 0,
    "CpuRealtimePeriod": 0,
    "CpuRealtimeRuntime": 0,
    "DeviceRequests": None,
    "IOMaximumBandwidth": 0,
    "IOMaximumIOps": 0,
    "Isolation": "",
    "KernelMemory": 0,
    "KernelMemoryTCP": 0,
    "Links": None,
    "VolumesFrom": None,
}


def host_config(workload: Workload) -> dict[str, Any]:
    """What the workload may do here."""
    settings = workload.settings
    return {
        "Binds": [bind(mount) for mount in settings.mounts if mount.kind != "tmpfs" and mount.source] or None,
        "LogConfig": {"Type": settings.log_driver, "Config": dict(settings.log_options)},
        "NetworkMode": settings.networks[0].network if settings.networks else "none",
        "PortBindings": _bindings(settings.ports),
        "RestartPolicy": {"Name": settings.restart.policy, "MaximumRetryCount": settings.restart.retries},
        "AutoRemove": settings.remove,
        "VolumeDriver": "",
        "Annotations": dict(settings.annotations),
        "ExtraHosts": list(settings.extra_hosts) or None,
        "Dns": list(settings.dns),
        "DnsOptions": list(settings.dns_options),
        "DnsSearch": list(settings.dns_search),
        "GroupAdd": list(settings.groups) or None,
        "PublishAllPorts": settings.publish_all,
        "ReadonlyRootfs": settings.read_only,
        "ShmSize": settings.shm_size,
        "Sysctls": dict(settings.sysctls),
        "Tmpfs": {mount.destination: tmpfs_options(mount) for mount in settings.mounts if mount.kind == "tmpfs"},
        "Runtime": workload.runtime,
        "Init": settings.init,
        "Devices": [
            {"PathOnHost": device.source, "PathInContainer": device.destination, "CgroupPermissions": device.access}
            for device in settings.devices
        ],
        "DeviceCgroupRules": list(settings.device_rules) or None,
        "Ulimits": [{"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard} for limit in settings.ulimits],
        **_WITHOUT_MEANING,
        **_security(settings),
        **_limits(settings),
    }


def _security(settings: Settings) -> dict[str, Any]:
    security, namespaces = settings.security, settings.namespaces
    bare = security.privileged or "ALL" in security.unmask
    options = [] if security.no_new_privileges else ["no-new-privileges=false"]
    options += [f"seccomp={security.seccomp}"] if security.seccomp else []
    options += [f"apparmor={security.apparmor}"] if security.apparmor else []
    options += [f"label={label}" for label in security.selinux_label]
    options += [f"landlock={security.landlock}"] if security.landlock else []
    return {
        "Privileged": security.privileged,
        "CapAdd": list(security.capabilities_add) or None,
        "CapDrop": list(security.capabilities_drop) or None,
        "SecurityOpt": options or None,
        "PidMode": namespaces.pid,
        "IpcMode": namespaces.ipc or "private",
        "UTSMode": namespaces.uts,
        "CgroupnsMode": namespaces.cgroup or "private",
        "UsernsMode": namespaces.user,
        "MaskedPaths": [] if bare else [*MASKED_PATHS, *security.mask],
        "ReadonlyPaths": [] if bare else list(READONLY_PATHS),
    }


def _limits(settings: Settings) -> dict[str, Any]:
    limits = settings.limits
    return {
        "Memory": limits.memory,
        "MemorySwap": limits.memory_swap,
        "MemoryReservation": limits.memory_reservation,
        "MemorySwappiness": None if limits.memory_swappiness < 0 else limits.memory_swappiness,
        "OomKillDisable": limits.oom_kill_disable,
        "OomScoreAdj": limits.oom_score_adj,
        "NanoCpus": round(limits.cpus * 1e9),
        "CpuShares": limits.cpu_shares,
        "CpuPeriod": limits.cpu_period_us,
        "CpuQuota": limits.cpu_quota_us,
        "CpusetCpus": limits.cpuset_cpus,
        "CpusetMems": limits.cpuset_mems,
        "PidsLimit": limits.pids or None,
        "BlkioWeight": limits.io_weight,
        "BlkioDeviceReadBps": _throttles(limits.read_bps),
        "BlkioDeviceWriteBps": _throttles(limits.write_bps),
        "BlkioDeviceReadIOps": _throttles(limits.read_iops),
        "BlkioDeviceWriteIOps": _throttles(limits.write_iops),
    }


def _throttles(throttles: tuple[Throttle, ...]) -> list[dict[str, Any]]:
    return [{"Path": throttle.path, "Rate": throttle.rate} for throttle in throttles]


def _bindings(ports: tuple[Port, ...]) -> dict[str, Any]:
    result: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        host = f"{port.host_port}-{port.host_port_last}" if port.host_port_last else str(port.host_port or "")
        binding = {"HostIp": port.host_address, "HostPort": host}
        result.setdefault(f"{port.port}/{port.protocol}", []).append(binding)
    return result


def bind(mount: Mount) -> str:
    """SOURCE:DESTINATION[:OPTIONS], as it would be typed."""
    words = ["ro"] if mount.read_only else []
    words += [] if mount.propagation == "rprivate" else [mount.propagation]
    words += [] if mount.copy_up else ["nocopy"]
    return ":".join([mount.source, mount.destination, *([",".join(words)] if words else [])])


def tmpfs_options(mount: Mount) -> str:
    """What stands behind the colon of ``--tmpfs``."""
    words = [*mount.options, *(["ro"] if mount.read_only else [])]
    words += [f"size={mount.size}"] if mount.size else []
    words += [f"mode={mount.mode:o}"] if mount.mode != 0o1777 else []
    return ",".join(words)


def mounts(workload: Workload, places: Mapping[str, str] = EMPTY) -> list[dict[str, Any]]:
    """Binds and volumes, the user's and the image's; memory stands in HostConfig.Tmpfs, as with Docker."""
    volumes = dict(workload.volumes)
    result = []
    for mount in workload.settings.mounts:
        name = volumes.pop(mount.destination, mount.source)
        if mount.kind == "volume":
            result.append(_volume(name, mount.destination, places, read_only=mount.read_only))
        elif mount.kind == "bind":
            result.append(_entry("bind", mount.destination, mount.source, mount.propagation, read_only=mount.read_only))
    result += [_volume(name, destination, places) for destination, name in volumes.items()]
    return result


def _volume(name: str, destination: str, places: Mapping[str, str], *, read_only: bool = False) -> dict[str, Any]:
    entry = _entry("volume", destination, places.get(name, ""), "", read_only=read_only)
    return {"Type": "volume", "Name": name, "Driver": "local", **entry}


def _entry(kind: str, destination: str, source: str, propagation: str, *, read_only: bool) -> dict[str, Any]:
    return {
        "Type": kind,
        "Source": source,
        "Destination": destination,
        "Mode": "ro" if read_only else "",
        "RW": not read_only,
        "Propagation": propagation,
    }
