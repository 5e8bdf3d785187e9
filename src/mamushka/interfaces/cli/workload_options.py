"""The options of ``run`` and ``create``, and those that other verbs share with them."""

from __future__ import annotations

from mamushka.interfaces.cli.options import flag, many, one
from mamushka.interfaces.docker import environment, limits, mounts, ports, units

DETACH_KEYS = one("--detach-keys", "The keys that detach, instead of ctrl-p,ctrl-q", "keys", default="ctrl-p,ctrl-q")
PULL_POLICIES = "always|missing|never"

LIMITS = (
    one("-m, --memory", "Memory limit", "bytes", default=0, convert=units.size),
    one("--memory-reservation", "Memory soft limit", "bytes", default=0, convert=units.size),
    one("--memory-swap", "Limit of memory and swap together; -1: unlimited", "bytes", default=0,
        convert=units.size_or_unlimited),
    one("--cpus", "Number of CPUs", "decimal", default=0.0, convert=units.number),
    one("-c, --cpu-shares", "Relative weight of CPU time", "int", default=0, convert=units.natural),
    one("--cpu-period", "Period of the CPU limit, in microseconds", "int", default=0, convert=units.natural,
        dest="cpu_period_us"),
    one("--cpu-quota", "CPU time in each period, in microseconds", "int", default=0, convert=units.integer,
        dest="cpu_quota_us"),
    one("--cpuset-cpus", "CPUs to run on: 0-3, 0,1", "list"),
    one("--cpuset-mems", "Memory nodes to use: 0-3, 0,1", "list"),
    one("--pids-limit", "Most processes at a time; -1: unlimited", "int", default=0, convert=units.integer),
    one("--blkio-weight", "Relative weight of block I/O, 10 to 1000", "int", default=0, convert=units.natural),
    one("--restart", "When it ends: no, always, unless-stopped, on-failure[:retries]", "policy", default=None,
        convert=limits.restart, complete="|".join(limits.POLICIES)),
)  # fmt: skip

_STREAMS = (
    many("-a, --attach", "Attach to stdin, stdout or stderr", complete="stdin|stdout|stderr"),
    flag("-i, --interactive", "Keep standard input open"),
    flag("-t, --tty", "Allocate a terminal"),
)

_IDENTITY = (
    one("--name", "Its name"),
    one("-h, --hostname", "Its host name"),
    one("--domainname", "Its NIS domain name"),
    one("-u, --user", "User and group: NAME|UID[:GROUP|GID]"),
    many("--group-add", "Further groups to be in"),
    one("-w, --workdir", "Its working directory"),
    one("--entrypoint", "Run this instead of the image's entrypoint", default=None),
    many("-e, --env", "Set a variable: NAME=value, or NAME to hand on your own", convert=environment.variable),
    many("--env-file", "Read variables from a file", complete="file"),
    many("-l, --label", "Set a label: key=value", convert=environment.pair),
    many("--label-file", "Read labels from a file", complete="file"),
    many("--annotation", "Set an annotation of the bundle: key=value", "map", convert=environment.pair),
    one("--cidfile", "Write the id to this file", complete="file"),
)

_FILES = (
    many("-v, --volume", "Mount a path or a volume: SOURCE:DESTINATION[:OPTIONS]", convert=mounts.volume,
         complete="volume"),
    many("--mount", "Mount: type=bind|volume|tmpfs,source=…,target=…", "mount", convert=mounts.mount),
    many("--tmpfs", "Mount memory: DESTINATION[:size=…,mode=…]", convert=mounts.tmpfs),
    many("--volumes-from", "Mount what another workload mounts: NAME[:ro]", complete="container"),
    one("--shm-size", "Size of /dev/shm", "bytes", default=64 << 20, convert=units.size),
    flag("--read-only", "Make the root read-only"),
    many("--device", "Give a device: SOURCE[:DESTINATION][:rwm]", convert=limits.device, complete="file"),
    many("--device-cgroup-rule", 'Allow devices: "c 42:* rmw"', convert=limits.device_rule),
)  # fmt: skip

_NETWORK = (
    many("--network, --net", "Join a network, or bridge, host, none, container:NAME", "network", complete="network",
         dest="network"),
    many("--network-alias", "A further name in the network"),
    one("--ip", "IPv4 address in the network"),
    one("--ip6", "IPv6 address in the network"),
    one("--mac-address", "MAC address in the network"),
    many("-p, --publish", "Publish a port: [ADDRESS:][HOST:]PORT[/tcp|udp]", convert=ports.published),
    flag("-P, --publish-all", "Publish every exposed port on a free one"),
    many("--expose", "Declare a port", convert=ports.exposed),
    many("--add-host", "Add a line to /etc/hosts: NAME:ADDRESS"),
    many("--dns", "Name servers"),
    many("--dns-option", "Options of the resolver", dest="dns_option"),
    many("--dns-search", "Domains to search"),
)  # fmt: skip

_WALL = (
    one("--runtime", "The wall: container, vm, …; a list is your order of preference", "list", default="container",
        complete="container|vm|emulated|confidential"),
    one("--kernel", "The kernel of its machine: a file, a directory with one and its modules, or image:REFERENCE "
        "(--runtime vm)", "path", complete="file"),
    flag("--cold", "Boot its machine, and do not begin from a saved one (--runtime vm)"),
    flag("--privileged", "Take the wall down: all capabilities and devices"),
    many("--cap-add", "Add a capability"),
    many("--cap-drop", "Drop a capability"),
    many("--security-opt", "seccomp=FILE|unconfined, no-new-privileges[=false], apparmor=…, label=…, landlock=POLICY"),
    one("--userns", "User namespace: host, private, UID:SIZE"),
    one("--pid", "Process namespace: host, container:NAME"),
    one("--ipc", "IPC namespace: host, private, container:NAME"),
    one("--uts", "Host name's namespace: host", complete="host|private"),
    one("--cgroupns", "Cgroup namespace: host, private", complete="host|private"),
    many("--sysctl", "Set a kernel parameter of its own: key=value", "map", convert=environment.pair),
    many("--ulimit", "Set a resource limit: NAME=SOFT[:HARD]", "ulimit", convert=limits.ulimit),
    many("--gpus", "Give GPUs (not supported)", "request"),
    many("--link", "Link to another workload (not supported; use --network)"),
)  # fmt: skip

_FURTHER_LIMITS = (
    one("--memory-swappiness", "How readily memory is swapped, 0 to 100", "int", default=-1, convert=units.integer),
    flag("--oom-kill-disable", "Never kill it for lack of memory"),
    one("--oom-score-adj", "How likely it is killed for lack of memory, -1000 to 1000", "int", default=0,
        convert=units.integer),
    many("--device-read-bps", "Limit reading: /dev/…:bytes a second", convert=limits.bytes_a_second),
    many("--device-write-bps", "Limit writing: /dev/…:bytes a second", convert=limits.bytes_a_second),
    many("--device-read-iops", "Limit reading: /dev/…:operations a second", convert=limits.operations_a_second),
    many("--device-write-iops", "Limit writing: /dev/…:operations a second", convert=limits.operations_a_second),
)  # fmt: skip

_LIFE = (
    flag("--rm", "Remove it and its anonymous volumes when it ends"),
    flag("--rootfs", "The first argument is a directory, the root in place of an image's; it is not written to"),
    flag("--init", "Run a small init inside that forwards signals and reaps"),
    one("--stop-signal", "The signal that stops it", "signal"),
    one("--stop-timeout", "Seconds from the stop signal to SIGKILL", "int", default=10, convert=units.integer),
    one("--health-cmd", "Check with this command whether it works", "command"),
    one("--health-interval", "Time between checks", "duration", default=None, convert=units.duration),
    one("--health-timeout", "Longest time of one check", "duration", default=None, convert=units.duration),
    one("--health-start-period", "Time in which failed checks do not count", "duration", default=None,
        convert=units.duration),
    one("--health-retries", "Failed checks until it is unhealthy", "int", default=None, convert=units.natural),
    flag("--no-healthcheck", "Do not run the image's check"),
    one("--log-driver", "Where its output goes", default="json-file", complete="json-file|none"),
    many("--log-opt", "Options of the log: max-size=10m, max-file=3", convert=environment.pair),
)  # fmt: skip

_IMAGE = (
    one("--platform", "os/architecture[/variant] of the image"),
    one("--pull", "When to pull: always, missing, never", "policy", default="missing", complete=PULL_POLICIES),
    flag("-q, --quiet", "Do not show the pull"),
)

CREATE = (
    *_STREAMS, *_IDENTITY, *_FILES, *_NETWORK, *_WALL, *LIMITS, *_FURTHER_LIMITS, *_LIFE, *_IMAGE,
)  # fmt: skip

RUN = (
    flag("-d, --detach", "Run in the background and print the id"),
    flag("--sig-proxy", "Hand signals on to the process", default=True),
    DETACH_KEYS,
    *CREATE,
)
