"""What a process may do, taken away in the one order that works.

Each step needs a right that a later one takes: raising a limit needs CAP_SYS_RESOURCE, emptying the bounding set
CAP_SETPCAP, changing ids CAP_SETUID; a system call filter needs CAP_SYS_ADMIN, unless no_new_privs is set. So:

  limits, groups, filter (without no_new_privs), bounding set, ids (keeping capabilities), capabilities,
  ambient set, no_new_privs, filter (with it), label of the next program.

Everything is looked up and encoded by ``prepare``; ``early`` and ``apply`` write down the calls.
"""

from __future__ import annotations

import os
from errno import EINVAL

from mamushka import trace
from mamushka.container.channel import LISTENS
from mamushka.container.operation import LABEL, LISTENER, RELEASED, open_in_proc
from mamushka.errors import Denied, Invalid, NotFound, Unsupported
from mamushka.linux import capabilities
from mamushka.linux.capabilities import HEADER, NUMBERS, members, pack
from mamushka.linux.executable import words
from mamushka.linux.keyring import (
    KEY_SESSION_DEFAULT,
    KEY_SPEC_SESSION_KEYRING,
    KEY_USR_SEARCH,
    KEYCTL_JOIN_SESSION_KEYRING,
    KEYCTL_SETPERM,
)
from mamushka.linux.process import (
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    initial,
)
from mamushka.linux.rlimit import NUMBERS as RLIMITS
from mamushka.linux.rlimit import rlimit64
from mamushka.linux.script import CHANNEL, Label
from mamushka.linux.seccomp import INSTRUCTION_SIZE, SECCOMP_SET_MODE_FILTER, sock_fprog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from mamushka.linux.script import Script
    from mamushka.linux.seccomp import Filter
    from mamushka.spec.runtime import Capabilities, Process, Rlimit

# What an ordinary container keeps of root's power: the fourteen that Docker leaves.
DEFAULT_CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
    "CAP_AUDIT_WRITE",
)  # fmt: skip


def capability_set(add: Iterable[str] = (), drop: Iterable[str] = (), privileged: bool = False) -> tuple[str, ...]:
    """The default capabilities, more and less: names with or without CAP_, in any case, or ALL.

    ALL among the added means all but the dropped; ALL among the dropped, none but the added.
    """
    added, dropped = [_name(item) for item in add], [_name(item) for item in drop]
    if privileged or "ALL" in added:
        start = set(capabilities.NAMES)
    else:
        start = set() if "ALL" in dropped else set(DEFAULT_CAPABILITIES)
    if not privileged:
        start -= {*dropped}
        start |= {*added} - {"ALL"}
    return tuple(name for name in capabilities.NAMES if name in start)


def _name(word: str) -> str:
    name = word.upper()
    if name == "ALL":
        return name
    name = name if name.startswith("CAP_") else f"CAP_{name}"
    if name not in NUMBERS:
        raise Invalid(f"{word!r} is not a capability", hint="capabilities(7) lists them; CAP_ may be left out")
    return name


def lacking(wanted: Iterable[str] = capabilities.NAMES) -> tuple[str, ...]:
    """For ``doctor``: which of these capabilities this process cannot give, because it lacks them itself."""
    _, permitted, _ = capabilities.current()
    return capabilities.names(_mask(wanted) & ~permitted)


def _mask(names: Iterable[str]) -> int:
    """The set of the names that this table knows."""
    bits = 0
    for name in names:
        if name in NUMBERS:
            bits |= 1 << NUMBERS[name]
    return bits


_CAPABILITIES_MAX = 64  # the sets have no more bits
# How long a process waits behind a filter for the agent: longer than an agent is given (``listener``).
LISTENER_PATIENCE = 20
_SIGALRM, _SIGEV_SIGNAL, _CLOCK_MONOTONIC = 14, 0, 1
_NOWHERE = 0x1000


class Privileges:
    """All that ``apply`` needs, laid out; made by ``prepare``. ``missing`` names capabilities that cannot be given."""

    __slots__ = (
        "_ambient",
        "_bounding",
        "_capset",
        "_filter",
        "_groups",
        "_label",
        "_label_path",
        "_limits",
        "_no_new_privs",
        "_uid_gid",
        "_umask",
        "keyring",
        "missing",
        "oom_score",
    )  # fmt: skip

    def __init__(self, process: Process, filter: Filter | None, keyring: str, held: int, groups: bool) -> None:
        user = process.user
        self._uid_gid = (user.uid, user.gid)
        self._groups = list(user.additional_gids) if groups else None
        self._umask = user.umask
        self._no_new_privs = process.no_new_privileges
        self._filter = filter
        self.keyring = os.fsencode(keyring)
        self._limits = _limits(process.rlimits)
        self.oom_score = b"" if process.oom_score_adj is None else b"%d" % process.oom_score_adj
        self._label_path, self._label = _label(process)
        self.missing: tuple[str, ...] = ()
        self._bounding: frozenset[int] | None = None
        self._capset = b""
        self._ambient: tuple[int, ...] = ()
        self._set_capabilities(process.capabilities, held)

    def _set_capabilities(self, wanted: Capabilities | None, held: int) -> None:
        if wanted is None:
            return
        bounding, permitted = _mask(wanted.bounding), _mask(wanted.permitted)
        effective, inheritable, ambient = _mask(wanted.effective), _mask(wanted.inheritable), _mask(wanted.ambient)
        self.missing = capabilities.names((bounding | permitted) & ~held)
        if self.missing:
            trace.event("privileges.missing", capabilities=self.missing)
        # config.md#linux-process: a warning, and on.
        given = {*wanted.bounding, *wanted.permitted, *wanted.effective, *wanted.inheritable, *wanted.ambient}
        for name in sorted(given - NUMBERS.keys()):
            trace.event("privileges.unknown_capability", name=name)
        permitted &= held
        inheritable &= held
        self._bounding = frozenset(members(bounding))
        self._capset = pack(effective & permitted, permitted, inheritable)
        # The kernel lets only what is permitted and inheritable be ambient. capabilities(7).
        self._ambient = tuple(members(ambient & permitted & inheritable))

    def key(self) -> object:
        """All that the calls hang on; the keyring's name but for what it is."""
        limits = [(number, limit.rlim_cur, limit.rlim_max) for number, limit in self._limits]
        ids = (self._uid_gid, self._groups, self._umask)
        sets = (self._bounding, self._capset, self._ambient)
        return ids, limits, sets, self._no_new_privs, self._filter, self._label, self._label_path, bool(self.keyring)

    def in_proc(self) -> bool:
        """Whether something is to be written below the host's /proc."""
        return bool(self._label_path or self.oom_score)

    @property
    def labelled(self) -> bool:
        """Whether LABEL is open between ``early`` and ``apply``."""
        return bool(self._label_path)

    def early(self, script: Script) -> None:
        """What the process can only do for itself, and before the root changes; HOST_PROC is the host's procfs."""
        if self.keyring:
            script.call("keyctl", KEYCTL_JOIN_SESSION_KEYRING, script.name(self.keyring), 0, 0, 0)
            # So that exec finds it by its name.
            mode = KEY_SESSION_DEFAULT | KEY_USR_SEARCH
            script.call("keyctl", KEYCTL_SETPERM, KEY_SPEC_SESSION_KEYRING, mode, 0, 0)
        if self._label_path:
            open_in_proc(script, self._label_path, LABEL)

    def apply(self, script: Script, *, told: bool = True) -> None:
        """Give up what is not to be had, for good.

        A filter with a listener stops it here until the agent has the descriptor (``listener``); ``told`` says so.
        """
        if self._filter and self._filter.listens:
            _end_unless_released(script)
        for number, limit in self._limits:
            script.call("prlimit64", 0, number, limit, 0)
        if self._umask is not None:
            script.call("umask", self._umask)
        if self._groups is not None:
            script.call("setgroups", len(self._groups), script.place(words(self._groups, 4)))
        if self._filter and not self._no_new_privs:
            self._install(script, self._filter, told=told)
        self._change_ids_and_capabilities(script)
        if self._no_new_privs:
            script.call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if self._label_path:
            script.call("write", LABEL, self._label, len(self._label), about=f": {os.fsdecode(self._label)!r}")
        if self._filter and self._no_new_privs:
            self._install(script, self._filter, told=told)

    def _install(self, script: Script, filter: Filter, *, told: bool) -> None:
        program = sock_fprog(len=len(filter.program) // INSTRUCTION_SIZE, filter=script.place(filter.program))
        if not filter.listens:
            script.call("seccomp", SECCOMP_SET_MODE_FILTER, filter.flags, program)
            return
        waiting = Label()
        script.give(LISTENER, -1)
        if told:
            script.call("write", CHANNEL, LISTENS, 1)
        script.call("seccomp", SECCOMP_SET_MODE_FILTER, filter.flags, program, into=LISTENER)
        script.mark(waiting)  # and not a call more
        script.compare(RELEASED, -1, 1, waiting)

    def _change_ids_and_capabilities(self, script: Script) -> None:
        if self._bounding is not None:
            self._drop_bounding(script, self._bounding)
        uid, gid = self._uid_gid
        script.call("setresgid", gid, gid, gid)
        if uid:
            # Leaving uid 0 would clear the permitted set; what is to stay is set just below.
            script.call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
        script.call("setresuid", uid, uid, uid)
        if self._bounding is not None:
            script.call("capset", HEADER, script.place(self._capset))
            script.call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
            for number in self._ambient:
                script.call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0)

    def _drop_bounding(self, script: Script, keep: frozenset[int]) -> None:
        """Also those newer than our table: EINVAL comes beyond the kernel's last one. Needs CAP_SETPCAP."""
        done = Label()
        for number in range(_CAPABILITIES_MAX):
            if number not in keep:
                script.call("prctl", PR_CAPBSET_DROP, number, 0, 0, 0, on={EINVAL: done})
        script.mark(done)


def keyring_of(id: str) -> str:
    """The name of a container's session keyring. exec joins it, and never takes the caller's own inside."""
    return f"_mmk.{id}"


def _end_unless_released(script: Script) -> None:
    """Let the process end if it is not the program by then: whoever was to hand its listener over may have died.

    By a timer, which an execve takes away, and a signal whose handler is nowhere: that kills the first process of a pid
    namespace, too, and needs no call that a filter could stop. timer_create(2), signal(7).
    """
    action = words([_NOWHERE, 0, 0, 0], 8)  # a struct sigaction
    event = words([0], 8) + words([_SIGALRM, _SIGEV_SIGNAL], 4)
    timer = script.variable()
    script.call("rt_sigaction", _SIGALRM, script.place(action), 0, 8)
    script.call("timer_create", _CLOCK_MONOTONIC, script.place(event.ljust(64, b"\0")), timer.address)
    script.call("timer_settime", timer, 0, script.place(words([0, 0, LISTENER_PATIENCE, 0], 8)), 0)


def prepare(
    process: Process,
    *,
    filter: Filter | None = None,
    keyring: str = "",
    user_namespace: bool = False,
    groups: bool | None = None,
) -> Privileges:
    """Everything that confines a process, ready to be applied in the child.

    ``keyring`` names a new session keyring. In a new user namespace (``user_namespace``) the child holds every
    capability, whatever the caller lacks; ``groups`` is false where that namespace forbids setgroups (None: ask the
    caller's own).
    Capabilities that the caller does not hold are left out and named in ``missing``.
    """
    _, permitted, _ = capabilities.current()
    if groups is None:
        groups = initial() or user_namespace or _possible(process)
    return Privileges(process, filter, keyring, capabilities.ALL if user_namespace else permitted, groups)


def _possible(process: Process) -> bool:
    """Whether the caller's namespace allows setgroups. Unsupported or Denied for what it has not, or may not raise."""
    import resource

    from mamushka.linux.users import has, may_set_groups, ranges

    for kind, number in (("uid", process.user.uid), ("gid", process.user.gid)):
        if not has(number, ranges(kind)):
            raise Unsupported(
                f"there is no {kind} {number} in this user namespace",
                hint="grant subordinate ids in /etc/subuid and /etc/subgid, and stop what runs: mamushka doctor",
            )
    for limit in process.rlimits:
        hard = resource.getrlimit(RLIMITS[limit.type])[1] if limit.type in RLIMITS else -1
        if hard != resource.RLIM_INFINITY and limit.hard > hard:
            raise Denied(
                f"{limit.type} cannot be raised to {limit.hard}: this user's own limit is {hard}",
                hint="ask for less, or have root raise it in /etc/security/limits.conf",
            )
    own = int(_first("/proc/self/oom_score_adj") or 0)
    if process.oom_score_adj is not None and process.oom_score_adj < own:
        raise Denied(f"the score {process.oom_score_adj} for the out-of-memory killer is below the caller's own {own}",
                     hint="only root may lower it")  # fmt: skip
    return may_set_groups()


def _limits(wanted: Iterable[Rlimit]) -> list[tuple[int, rlimit64]]:
    result = {}
    for limit in wanted:
        number = RLIMITS.get(limit.type)
        if number is None:
            raise Invalid(f"{limit.type!r} is not a resource limit", hint="getrlimit(2) lists them: RLIMIT_NOFILE, …")
        if limit.soft > limit.hard:
            raise Invalid(f"the soft {limit.type} {limit.soft} is above the hard one {limit.hard}")
        if number in result:
            raise Invalid(f"{limit.type} is given twice")
        result[number] = rlimit64(rlim_cur=limit.soft, rlim_max=limit.hard)
    return list(result.items())


def apparmor() -> bool:
    """Whether this kernel confines by AppArmor profiles."""
    return _first("/sys/module/apparmor/parameters/enabled") == "Y"


def selinux() -> bool:
    """Whether this kernel has SELinux, with its file system where it belongs."""
    return os.path.exists("/sys/fs/selinux/enforce")


def _label(process: Process) -> tuple[bytes, bytes]:
    """The file below /proc, the thread's own, and the text that label the next program."""
    if process.apparmor_profile:
        if not apparmor():
            raise Unsupported(f"cannot use the AppArmor profile {process.apparmor_profile!r}: AppArmor is not enabled",
                              hint="leave the profile out, or boot with apparmor=1")  # fmt: skip
        if not _loaded(process.apparmor_profile):
            raise not_loaded(process.apparmor_profile)
        stacked = "thread-self/attr/apparmor/exec"
        path = stacked if os.path.exists(f"/proc/{stacked}") else "thread-self/attr/exec"
        return path.encode(), os.fsencode(f"exec {process.apparmor_profile}")
    if process.selinux_label:
        if not selinux():
            raise Unsupported(f"cannot use the SELinux label {process.selinux_label!r}: SELinux is not enabled",
                              hint="leave the label out, or boot with selinux=1")  # fmt: skip
        return b"thread-self/attr/exec", os.fsencode(process.selinux_label)
    return b"", b""


def _loaded(profile: str) -> bool:
    """Whether the kernel has the profile; True where that cannot be seen, and where it is one of another namespace."""
    if profile == "unconfined":  # none that is loaded, and always there
        return True
    try:
        with open("/sys/kernel/security/apparmor/profiles", encoding="utf-8", errors="surrogateescape") as lines:
            return profile[:1] == ":" or "//&" in profile or any(line.rpartition(" (")[0] == profile for line in lines)
    except OSError:  # securityfs is not mounted, or only for root
        return True


def not_loaded(profile: str) -> NotFound:
    """The error for a profile that the kernel does not have."""
    return NotFound(
        f"the AppArmor profile {profile!r} is not loaded", hint="apparmor_parser --add loads one; aa-status lists them"
    )


def _first(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.readline().strip()
    except OSError:
        return ""
