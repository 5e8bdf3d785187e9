"""From the options of ``run`` and ``create`` to what the engine takes."""

from __future__ import annotations

import os

from mamushka.engine.settings import Attachment, Health, Limits, Namespaces, Restart, Security, Settings
from mamushka.errors import Invalid, NotFound, Unsupported
from mamushka.interfaces.docker.environment import environment, labels

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mamushka.engine.settings import Mount
    from mamushka.interfaces.cli.options import Arguments

# A profile with every system call spelled out stays below 100 KiB.
_PROFILE_MAX = 1 << 20


def settings(arguments: Arguments, volumes_from: tuple[Mount, ...] = ()) -> Settings:
    """What the user asked for. Invalid for what contradicts itself."""
    _refuse(arguments)
    image, *command = arguments.operands
    return Settings(
        image=os.path.abspath(image) if arguments.rootfs else image,
        rootfs=arguments.rootfs,
        command=tuple(command),
        entrypoint=_entrypoint(arguments.entrypoint),
        name=arguments.name.removeprefix("/"),
        environment=environment(arguments.env, arguments.env_file),
        working_directory=_working_directory(arguments.workdir),
        user=arguments.user,
        groups=arguments.group_add,
        hostname=arguments.hostname,
        domainname=arguments.domainname,
        mounts=_mounts((*volumes_from, *arguments.volume, *arguments.mount, *arguments.tmpfs)),
        networks=_networks(arguments),
        ports=tuple(port for ports in arguments.publish for port in ports),
        publish_all=arguments.publish_all,
        expose=tuple(port for ports in arguments.expose for port in ports),
        extra_hosts=tuple(_extra_host(text) for text in arguments.add_host),
        dns=arguments.dns,
        dns_search=arguments.dns_search,
        dns_options=arguments.dns_option,
        limits=limits(arguments),
        shm_size=arguments.shm_size,
        read_only=arguments.read_only,
        security=_security(arguments),
        namespaces=_namespaces(arguments),
        devices=arguments.device,
        device_rules=arguments.device_cgroup_rule,
        platform=arguments.platform,
        restart=arguments.restart or Restart(),
        health=_health(arguments),
        init=arguments.init,
        labels=labels(arguments.label, arguments.label_file),
        annotations=_annotations(arguments),
        stop_timeout=arguments.stop_timeout,
        stop_signal=arguments.stop_signal,
        ulimits=arguments.ulimit,
        sysctls=dict(arguments.sysctl),
        runtime=_runtime(arguments.runtime),
        terminal=arguments.tty,
        stdin=arguments.interactive,
        remove=arguments.rm,
        log_driver=arguments.log_driver,
        log_options=dict(arguments.log_opt),
    )


def _annotations(arguments: Arguments) -> dict[str, str]:
    """The user's own, and how a machine is to be made."""
    own = dict(arguments.annotation)
    if not arguments.kernel and not arguments.cold:
        return own
    from mamushka.engine.runtimes import of_machines

    return {**own, **of_machines(_runtime(arguments.runtime), arguments.kernel, arguments.cold)}


def _refuse(arguments: Arguments) -> None:
    """What cannot be, and what would be silently less than was asked for."""
    if not arguments.operands[0]:
        raise Invalid("the image's name is empty")
    if arguments.rm and arguments.restart and arguments.restart.policy != "no":
        raise Invalid("--rm and --restart contradict each other", hint="what is removed cannot be started again")
    if arguments.gpus:
        raise Unsupported("--gpus is not supported", hint="give the device nodes themselves: --device /dev/nvidia0")
    if arguments.link:
        raise Unsupported("--link is not supported", hint="workloads of one --network find each other by name")
    if arguments.pull not in ("always", "missing", "never"):
        raise Invalid(f"{arguments.pull!r} is not a pull policy", hint="always, missing or never")


def _runtime(text: str) -> tuple[str, ...]:
    names = tuple(word.strip() for word in text.split(","))
    if not all(names):
        raise Invalid(f"--runtime {text!r} names no wall", hint="for example --runtime container")
    return names


def _entrypoint(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return (text,) if text else ()


def _working_directory(path: str) -> str:
    if path and not path.startswith("/"):
        raise Invalid(f"the working directory {path!r} is not absolute")
    return path


def _mounts(mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    """The later of two from --volumes-from gives way; two given for one place contradict each other."""
    seen: set[str] = set()
    for mount in mounts:
        if mount.destination in seen:
            raise Invalid(f"two mounts for {mount.destination}")
        seen.add(mount.destination)
    return mounts


def _networks(arguments: Arguments) -> tuple[Attachment, ...]:
    extra = {
        "aliases": arguments.network_alias,
        "address": arguments.ip,
        "address6": arguments.ip6,
        "mac": arguments.mac_address,
    }
    asked = {key: item for key, item in extra.items() if item}
    first, *others = [_attachment(text) for text in arguments.network or ("bridge",)]
    alone = [item["network"] for item in (first, *others) if item["network"].partition(":")[0] in _ALONE]
    if alone and (others or asked):
        raise Invalid(f"--network {alone[0]} can have no further networks, aliases or addresses")
    return tuple(Attachment(**item) for item in ({**first, **asked}, *others))


_ALONE = ("none", "host", "container")


def _attachment(text: str) -> dict[str, Any]:
    """A name, or name=…,alias=…,ip=… ."""
    if "=" not in text:
        if not text:
            raise Invalid("--network names no network")
        return {"network": "bridge" if text == "default" else text}
    result: dict[str, Any] = {"network": "bridge", "aliases": ()}
    for field in text.split(","):
        key, _, word = field.partition("=")
        if key == "alias":
            result["aliases"] += (word,)
        elif key in _FIELDS:
            result[_FIELDS[key]] = word
        else:
            raise Invalid(f"{key!r} is not a field of --network", hint="name, alias, ip, ip6, mac-address")
    return result


_FIELDS = {"name": "network", "ip": "address", "ip6": "address6", "mac-address": "mac"}


def _extra_host(text: str) -> str:
    """NAME:ADDRESS or NAME=ADDRESS; the address may be in brackets."""
    name, separator, address = text.partition("=" if "=" in text else ":")
    if not name or not separator or not address:
        raise Invalid(f"--add-host {text!r} is not NAME:ADDRESS", hint="for example db:10.0.0.5 or host:host-gateway")
    if address[0] == "[" and address[-1] == "]":
        address = address[1:-1]
    return f"{name}:{address}"


def limits(arguments: Arguments) -> Limits:
    """The limits of ``run``, ``create`` and, as far as it has them, ``update``."""
    given = arguments.__dict__
    swappiness, score = given.get("memory_swappiness", -1), given.get("oom_score_adj", 0)
    if not -1 <= swappiness <= 100:
        raise Invalid(f"--memory-swappiness {swappiness} is not between 0 and 100")
    if not -1000 <= score <= 1000:
        raise Invalid(f"--oom-score-adj {score} is not between -1000 and 1000")
    weight = arguments.blkio_weight
    if weight and not 10 <= weight <= 1000:
        raise Invalid(f"--blkio-weight {weight} is not between 10 and 1000")
    if arguments.cpus and (arguments.cpu_quota_us or arguments.cpu_period_us):
        raise Invalid("--cpus contradicts --cpu-quota and --cpu-period", hint="give one or the others")
    if arguments.memory and 0 < arguments.memory_swap < arguments.memory:
        raise Invalid("--memory-swap is less than --memory", hint="it limits memory and swap together")
    return Limits(
        memory=arguments.memory,
        memory_swap=arguments.memory_swap,
        memory_reservation=arguments.memory_reservation,
        memory_swappiness=swappiness,
        oom_kill_disable=given.get("oom_kill_disable", False),
        oom_score_adj=score,
        cpus=arguments.cpus,
        cpu_shares=arguments.cpu_shares,
        cpu_period_us=arguments.cpu_period_us,
        cpu_quota_us=arguments.cpu_quota_us,
        cpuset_cpus=arguments.cpuset_cpus,
        cpuset_mems=arguments.cpuset_mems,
        pids=arguments.pids_limit,
        io_weight=weight,
        read_bps=given.get("device_read_bps", ()),
        write_bps=given.get("device_write_bps", ()),
        read_iops=given.get("device_read_iops", ()),
        write_iops=given.get("device_write_iops", ()),
    )


def _security(arguments: Arguments) -> Security:
    found: dict[str, Any] = {"selinux_label": (), "landlock": "", "mask": (), "unmask": ()}
    for text in arguments.security_opt:
        _security_option(text, found)
    return Security(
        privileged=arguments.privileged,
        capabilities_add=arguments.cap_add,
        capabilities_drop=arguments.cap_drop,
        **found,
    )


def _security_option(text: str, found: dict[str, Any]) -> None:
    key, _, word = text.replace(":", "=", 1).partition("=") if "=" not in text else text.partition("=")
    if key == "no-new-privileges":
        if word not in ("", "true", "false"):
            raise Invalid(f"no-new-privileges is true or false, not {word!r}")
        found["no_new_privileges"] = word != "false"
    elif key == "seccomp":
        found["seccomp"] = _PROFILES[word] if word in _PROFILES else _profile(word)
    elif key == "apparmor":
        found["apparmor"] = word
    elif key == "label":
        found["selinux_label"] += (word,)
    elif key == "landlock":
        found["landlock"] = _landlock(word, found["landlock"])
    elif key in ("mask", "unmask"):
        found[key] += tuple(word.split(":"))
    elif key == "systempaths" and word == "unconfined":
        found["unmask"] += ("ALL",)
    else:
        raise Invalid(
            f"--security-opt {text!r} is not known",
            hint="no-new-privileges, seccomp, apparmor, label, landlock, mask, unmask, systempaths=unconfined",
        )


def _landlock(word: str, before: str) -> str:
    """The policy's text, after the items that were given before."""
    from mamushka.container.landlock import parse

    if word.endswith(".json"):
        word = _read(word, "Landlock policy")
    text = f"{before},{word}" if before else word
    parse(text)
    return text


_PROFILES = {"unconfined": "unconfined", "builtin": "", "default": ""}


def _profile(path: str) -> str:
    """A seccomp profile's text; it must be JSON."""
    return _read(path, "seccomp profile")


def _read(path: str, what: str) -> str:
    """The text of a JSON file."""
    from mamushka import document

    try:
        with open(path, "rb") as file:
            raw = file.read(_PROFILE_MAX + 1)
    except OSError as error:
        raise NotFound(f"cannot read the {what} {path!r}: {error.strerror}") from error
    document.parse(raw, f"the {what} {path!r}", size_max=_PROFILE_MAX)
    return raw.decode()


def _namespaces(arguments: Arguments) -> Namespaces:
    return Namespaces(
        pid=_namespace("pid", arguments.pid, "host", "private"),
        ipc=_namespace("ipc", arguments.ipc, "host", "private", "shareable"),
        uts=_namespace("uts", arguments.uts, "host", "private", shared=False),
        cgroup=_namespace("cgroupns", arguments.cgroupns, "host", "private", shared=False),
        user=arguments.userns,
    )


def _namespace(name: str, text: str, *words: str, shared: bool = True) -> str:
    kind, _, whose = text.partition(":")
    if not text or text in words or (shared and kind == "container" and whose):
        return "private" if text == "shareable" else text  # every ipc namespace of ours can be joined
    known = ", ".join((*words, "container:NAME") if shared else words)
    raise Invalid(f"--{name} {text!r} is not known", hint=f"one of {known}")


def _health(arguments: Arguments) -> Health | None:
    times = {
        "interval": arguments.health_interval,
        "timeout": arguments.health_timeout,
        "start_period": arguments.health_start_period,
        "retries": arguments.health_retries,
    }
    given = {key: item for key, item in times.items() if item}
    if arguments.no_healthcheck:
        if arguments.health_cmd or given:
            raise Invalid("--no-healthcheck and --health-… contradict each other")
        return Health(test=("NONE",))
    if arguments.health_cmd:
        return Health(test=("CMD-SHELL", arguments.health_cmd), **given)
    return Health(**given) if given else None


def reserve(path: str) -> None:
    """Make the empty file of ``--cidfile``, which must not exist; what cannot be written is said before all else."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    except FileExistsError as error:
        raise Invalid(f"the file {path!r} exists already", hint="remove it, or give another --cidfile") from error
    except OSError as error:
        raise Invalid(f"cannot write {path!r}: {error.strerror}") from error
