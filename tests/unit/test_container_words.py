"""What the container room reads and writes as text: options, failures, ids, paths, sysctls, signals."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.container import channel, checkpoint, features, mounts, namespaces, options, plan, privileges
from mamushka.container.affinity import cpu_list
from mamushka.container.failure import explain
from mamushka.container.operation import DIRECTORY, HOOK, HOOK_ENDED, PROGRAM
from mamushka.container.rootfs import components
from mamushka.errors import Conflict, Denied, Invalid, MamushkaError, NotFound, Unsupported
from mamushka.interfaces.oci import arguments
from mamushka.interfaces.oci.lifecycle import signal_number
from mamushka.interfaces.oci.limits import _bytes
from mamushka.linux import mount as abi
from mamushka.linux.script import failure, parse
from mamushka.record import Kept, Record, alive, check_id, records, start_time
from mamushka.runtime import CannotExecute, CommandNotFound, NotRunning
from mamushka.spec.runtime import (
    Config,
    Hook,
    Hooks,
    IntelRdt,
    Linux,
    MemoryPolicy,
    Mount,
    NetDevice,
    Personality,
    Process,
    Seccomp,
)


def test_later_options_win() -> None:
    asked = options.parse(("ro", "nosuid", "rw", "noexec", "exec", "noatime"), "/x")
    assert asked.set == abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NOATIME
    assert asked.clear & abi.MOUNT_ATTR_RDONLY and asked.clear & abi.MOUNT_ATTR_NOEXEC
    assert options.parse(("noatime", "strictatime"), "/x").set == abi.MOUNT_ATTR_STRICTATIME


def test_kinds_of_options() -> None:
    asked = options.parse(("rbind", "rro", "rslave", "tmpcopyup", "defaults"), "/x")
    assert asked.bind and asked.recursive and asked.words == ("tmpcopyup",) and asked.parameters == ()
    assert asked.recursive_set == abi.MOUNT_ATTR_RDONLY
    assert asked.propagation == (abi.MS_SLAVE | abi.MS_REC,)
    asked = options.parse(("size=65536k", "mode=755", "sync", "newinstance"), "/x")
    assert asked.parameters == ("size=65536k", "mode=755", "newinstance") and asked.flags == ("sync",)
    with pytest.raises(Invalid, match="uid=0"):
        options.parse(("bind", "uid=0"), "/x")


@given(st.lists(st.sampled_from(options.known()) | st.text(max_size=6), max_size=8))
def test_any_options_are_read_or_invalid(words: list[str]) -> None:
    try:
        asked = options.parse(words, "/x")
    except Invalid:
        return
    assert not asked.set & asked.clear & ~abi.MOUNT_ATTR__ATIME
    assert not asked.recursive_set & asked.recursive_clear & ~abi.MOUNT_ATTR__ATIME


@given(st.integers(1, 130), st.text(max_size=40), st.text(max_size=40))
def test_a_failure_survives_its_packet(number: int, text: str, path: str) -> None:
    said = f"={text}: {path!r}".replace("\0", "")
    packet = failure(number, "kind\0do it", said)
    assert len(packet) <= channel.PACKET_MAX
    assert parse(packet)[:3] == (number, "kind", "do it")
    assert parse(packet)[3] == said[1:] or max(said) >= "\ud800"


@given(st.binary(max_size=600))
def test_any_packet_is_read(raw: bytes) -> None:
    """Whatever follows the E, the parts are texts and nothing is raised."""
    number, *texts = parse(b"E" + raw)
    assert number >= 0 and all(isinstance(text, str) for text in texts)


@pytest.mark.parametrize(
    ("about", "error", "kind", "message"),
    [
        (PROGRAM, FileNotFoundError(2, "x"), CommandNotFound, 'exec: "nope": executable file not found in $PATH'),
        (PROGRAM, PermissionError(13, "x"), CannotExecute, "permission denied"),
        (PROGRAM, OSError(8, "x"), CannotExecute, "exec format error"),
        (DIRECTORY, FileNotFoundError(2, "Gone"), CannotExecute, 'chdir to cwd ("/w") set in config.json failed: gone'),
        ("", PermissionError(1, "No"), Denied, "cannot do it: no"),
        ("", ProcessLookupError(3, "No such process"), NotRunning, "container not running: cannot do it"),
        ("", OSError(38, "No call"), Unsupported, "cannot do it: no call"),
        (HOOK, OSError(256, HOOK_ENDED), MamushkaError, "cannot do it: the hook ended with exit status 1"),
        (HOOK, OSError(9, HOOK_ENDED), MamushkaError, "cannot do it: the hook ended by signal 9"),
    ],
)
def test_failures_are_explained(about: str, error: OSError, kind: type[Exception], message: str) -> None:
    packet = failure(error.errno or 0, f"{about}\0do it", f"={error.strerror}")
    explained = explain(packet, Process(args=("nope",), cwd="/w"))
    assert isinstance(explained, kind) and message in str(explained)


@given(st.text(max_size=20))
def test_ids_become_names_of_directories(id: str) -> None:
    try:
        check_id(id)
    except Invalid:
        return
    assert id and "/" not in id and id not in (".", "..") and id.isascii() and len(id) <= 255


@given(st.text(alphabet="a./", max_size=20))
def test_components_never_climb(path: str) -> None:
    names = components(path.encode())
    assert b".." not in names and b"." not in names and b"" not in names
    assert os.path.normpath(b"/" + b"/".join(names)) == os.path.normpath(b"/" + path.encode()).replace(b"//", b"/")


def test_a_path_without_end_is_refused() -> None:
    with pytest.raises(OSError, match="components"):
        components(b"a/" * 300)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", b"net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", b"net/ipv4/ip_forward"),
        ("net/ipv4/conf/eth0.1/forwarding", b"net/ipv4/conf/eth0.1/forwarding"),
        ("net.ipv4.conf.eth0/1.forwarding", b"net/ipv4/conf/eth0.1/forwarding"),
    ],
)
def test_sysctls_as_paths(name: str, path: bytes) -> None:
    assert namespaces._sysctl_path(name) == path


def test_a_record(tmp_path: object) -> None:
    record = Record(f"{tmp_path}/state", "x")
    with pytest.raises(NotFound, match="does not exist"):
        record.read()
    record.claim("/mamushka/x")
    with pytest.raises(Conflict, match="already exists"):
        Record(f"{tmp_path}/state", "x").claim("/")
    config = Config("1.0.0", Process(args=("true",)), hooks=Hooks(poststop=(Hook("/x"),)))
    assert Record(f"{tmp_path}/state", "x").status(frozen=False) == "creating"
    record.keep(Kept("x", "/bundle", 1.5, "/mamushka/x", config), b"filter")
    record.release()
    other = Record(f"{tmp_path}/state", "x")
    assert other.status(frozen=False) == "stopped"  # its creator is gone
    kept = other.read()
    assert (kept.bundle, kept.created, kept.cgroup, kept.config, kept.hooked) == (
        "/bundle",
        1.5,
        "/mamushka/x",
        config,
        True,
    )
    assert other.content("seccomp") == b"filter" and other.kept_cgroup() == "/mamushka/x"
    other.keep_process(os.getpid())
    assert other.status(frozen=False) == "running" and other.living() == os.getpid()
    assert [found.id for found in records(f"{tmp_path}/state")] == ["x"]
    other.remove()
    other.remove()
    assert list(records(f"{tmp_path}/state")) == []


@given(st.binary(max_size=40))
def test_a_damaged_record_is_invalid(raw: bytes) -> None:
    with pytest.raises(Invalid):
        Kept.parse("x", raw, "state.json")


def test_a_process_is_known_by_when_it_began() -> None:
    start = start_time(os.getpid())
    assert alive(os.getpid(), start) and not alive(os.getpid(), start + 1) and not alive(1 << 30, start)
    assert 0 < start / os.sysconf("SC_CLK_TCK") <= time.clock_gettime(time.CLOCK_BOOTTIME)


# The command line


def test_flags() -> None:
    found, rest = arguments.parse(arguments.EXEC, ["-e", "A=1", "--env=B=2", "-t", "id", "-x", "--tty"], stop=True)
    assert found.all("env") == ("A=1", "B=2") and "tty" in found and rest == ["id", "-x", "--tty"]
    found, rest = arguments.parse(arguments.DELETE, ["id", "--force", "--", "-x"], stop=False)
    assert "force" in found and rest == ["id", "-x"]
    assert "detach" not in arguments.parse(arguments.RUN, ["-d", "--detach=false"], stop=False)[0]
    for wrong in (["--no-such"], ["--bundle"], ["--detach=maybe"]):
        with pytest.raises(arguments.UsageError):
            arguments.parse(arguments.RUN, wrong, stop=False)


@given(st.lists(st.text(max_size=8)))
def test_any_command_line_is_read_or_refused(words: list[str]) -> None:
    for flags in (arguments.GLOBAL, arguments.RUN, arguments.EXEC, arguments.UPDATE):
        try:
            arguments.parse(flags, words, stop=False)
        except arguments.UsageError:
            continue


@pytest.mark.parametrize(
    ("text", "number"), [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("sigterm", 15), ("SIGRTMIN+1", 35)]
)
def test_signals(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["", "SIGFLY", "65", "-1", "SIG_DFL", "SIG", "9.5"])
def test_signals_that_are_none(text: str) -> None:
    with pytest.raises(Invalid):
        signal_number(text)


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512), ("1k", 1024), ("2MiB", 2 << 20), ("3gb", 3 << 30), ("-1", -1)]
)
def test_sizes(text: str, size: int) -> None:
    assert _bytes(text, "memory") == size


def test_lists_of_cpus() -> None:
    assert cpu_list("0-3,7, 9") == {0, 1, 2, 3, 7, 9}
    for text in ("", "a", "1-", "-1", "1,,2", "3-1", "9999", "\u0661"):
        with pytest.raises(Invalid):
            cpu_list(text)


@pytest.mark.parametrize("enabled", [False, True])
def test_labels_are_refused_where_they_mean_nothing(monkeypatch: pytest.MonkeyPatch, enabled: bool) -> None:
    """The host's answer is what ``features`` tells, and what decides over a mount label."""
    for name in ("apparmor", "selinux"):
        for module in (privileges, features):
            monkeypatch.setattr(module, name, lambda: enabled)
    told = features.features()["linux"]
    assert isinstance(told, dict) and told["selinux"] == told["apparmor"] == {"enabled": enabled}
    label = "system_u:object_r:container_file_t:s0:c1,c2"
    config = Config("1.2.0", process=Process(args=("x",)), linux=Linux(mount_label=label))
    if enabled:
        assert plan.checked_process(config).args == ("x",)
    else:
        with pytest.raises(Unsupported, match="SELinux is not enabled"):
            plan.checked_process(config)


def test_a_mount_label_goes_to_what_can_have_one() -> None:
    for kind, expected in (("tmpfs", (("context", "x_t"),)), ("devpts", (("context", "x_t"),)), ("proc", ())):
        mount = Mount("/x", type=kind)
        made = mounts.MountFilesystem(mount, mounts.parse(mount), "x_t")
        assert made.parameters == [(key.encode(), word.encode()) for key, word in expected]


def test_what_is_none_of_its_words_is_no_success_of_a_process() -> None:
    ours, theirs = channel.pair()
    os.write(theirs, b"exec some-profile")
    with pytest.raises(OSError, match="says"):
        channel.receive(ours)
    os.write(theirs, channel.READY)
    assert channel.receive(ours) == (channel.READY, -1)
    os.close(theirs)
    assert channel.receive(ours) == (b"", -1)
    os.close(ours)


@pytest.mark.parametrize(
    "linux",
    [
        Linux(seccomp=Seccomp("SCMP_ACT_ALLOW", listener_path="/x")),
        Linux(net_devices={"eth0": NetDevice()}),
        Linux(intel_rdt=IntelRdt()),
        Linux(memory_policy=MemoryPolicy("MPOL_LOCAL")),
        Linux(personality=Personality("LINUX32")),
    ],
)
def test_what_a_checkpoint_would_lose_is_refused(linux: Linux) -> None:
    with pytest.raises(Unsupported, match="criu would leave that out"):
        checkpoint.check(Config("1.3.0", linux=linux))
