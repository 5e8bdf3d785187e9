"""What a user may ask of a workload, in the engine's own words; interfaces translate their dialects into it.

Sizes are bytes, times seconds. An empty string or tuple means "as the image or the default says"; ``None``
marks the few fields where empty is itself an answer.
"""

from __future__ import annotations

from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


@value
class Mount:
    """Something of the host's, or memory, at ``destination``. Source: a path, a volume's name, or nothing."""

    kind: str  # bind | volume | tmpfs
    destination: str
    source: str = ""  # an empty volume name asks for an anonymous volume
    read_only: bool = False
    propagation: str = "rprivate"
    recursive: bool = True
    create_source: bool = False  # -v makes a missing directory, --mount refuses
    copy_up: bool = True  # a new volume starts with what the image has there
    subpath: str = ""
    size: int = 0  # tmpfs
    mode: int = 0o1777  # tmpfs
    options: tuple[str, ...] = ()  # further words of tmpfs: exec, uid=…, noatime
    labels: Mapping[str, str] = EMPTY


@value
class Port:
    """A port of the workload that the host answers on; ``host_port`` 0 takes a free one, ``host_port_last`` the
    first free one from ``host_port`` up to it."""

    port: int
    protocol: str = "tcp"
    host_address: str = ""  # empty: all, IPv4
    host_port: int = 0
    host_port_last: int = 0


@value
class Device:
    """A device node of the host's."""

    source: str
    destination: str
    access: str = "rwm"


@value
class Ulimit:
    """One resource limit; -1 is unlimited."""

    name: str  # nofile, nproc, core, …
    soft: int
    hard: int


@value
class Throttle:
    """A limit of a block device: bytes or operations a second."""

    path: str
    rate: int


@value
class Limits:
    """What the workload may use; zero means no limit."""

    memory: int = 0
    memory_swap: int = 0  # memory and swap together; -1 unlimited
    memory_reservation: int = 0
    memory_swappiness: int = -1
    oom_kill_disable: bool = False
    oom_score_adj: int = 0
    cpus: float = 0.0
    cpu_shares: int = 0
    cpu_period_us: int = 0
    cpu_quota_us: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int = 0
    io_weight: int = 0
    read_bps: tuple[Throttle, ...] = ()
    write_bps: tuple[Throttle, ...] = ()
    read_iops: tuple[Throttle, ...] = ()
    write_iops: tuple[Throttle, ...] = ()


@value
class Security:
    """How thick the wall is. The defaults are the safe ones."""

    privileged: bool = False
    capabilities_add: tuple[str, ...] = ()  # names with or without CAP_, or ALL
    capabilities_drop: tuple[str, ...] = ()
    no_new_privileges: bool = True
    seccomp: str = ""  # empty: the default profile; "unconfined"; or a JSON profile itself
    apparmor: str = ""
    selinux_label: tuple[str, ...] = ()
    landlock: str = ""  # a policy as container/landlock.py reads it
    unmask: tuple[str, ...] = ()  # paths, or ALL
    mask: tuple[str, ...] = ()


@value
class Namespaces:
    """host, private, container:ID, or empty for the default; user: host, private, or "uid:size" of a map."""

    pid: str = ""
    ipc: str = ""
    uts: str = ""
    cgroup: str = ""
    user: str = ""
    time: str = ""


@value
class Restart:
    """no, on-failure, always, unless-stopped; ``retries`` bounds on-failure, 0 is no bound."""

    policy: str = "no"
    retries: int = 0


@value
class Attachment:
    """How a workload joins a network."""

    network: str = "bridge"  # bridge, none, host, container:ID, or a network's name
    aliases: tuple[str, ...] = ()
    address: str = ""
    address6: str = ""
    mac: str = ""


@value
class Health:
    """A check that tells whether the workload does its job; empty test: the image's, ("NONE",): none."""

    test: tuple[str, ...] = ()
    interval: float = 30.0
    timeout: float = 30.0
    start_period: float = 0.0
    retries: int = 3


@value
class Settings:
    """Everything that ``run`` and ``create`` take."""

    image: str  # its name; with ``rootfs`` the path of a directory
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    name: str = ""
    environment: tuple[str, ...] = ()  # NAME=value
    working_directory: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    networks: tuple[Attachment, ...] = (Attachment(),)
    ports: tuple[Port, ...] = ()
    publish_all: bool = False
    expose: tuple[str, ...] = ()  # "80/tcp"
    extra_hosts: tuple[str, ...] = ()  # name:address; the address host-gateway is the bridge's
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    limits: Limits = Limits()
    shm_size: int = 64 << 20
    read_only: bool = False
    security: Security = Security()
    namespaces: Namespaces = Namespaces()
    devices: tuple[Device, ...] = ()
    device_rules: tuple[str, ...] = ()  # "c 42:* rwm"
    platform: str = ""  # os/architecture[/variant]
    restart: Restart = Restart()
    health: Health | None = None
    init: bool = False
    rootfs: bool = False  # there is no image: the root is a directory of this machine
    labels: Mapping[str, str] = EMPTY
    annotations: Mapping[str, str] = EMPTY
    stop_timeout: int = 10
    stop_signal: str = ""
    ulimits: tuple[Ulimit, ...] = ()
    sysctls: Mapping[str, str] = EMPTY
    runtime: tuple[str, ...] = ("container",)  # an order of preference; nothing else is ever used
    terminal: bool = False
    stdin: bool = False  # keep standard input open
    remove: bool = False  # with its anonymous volumes, when it ends
    log_driver: str = "json-file"
    log_options: Mapping[str, str] = EMPTY
