"""Settings and image become a bundle: Docker's rules, as tables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mamushka.engine import bundle, limits, mounts, users
from mamushka.engine.changing import merge
from mamushka.engine.ending import signal_number
from mamushka.engine.runtimes import choose
from mamushka.engine.settings import Device, Limits, Mount, Security, Settings, Ulimit
from mamushka.errors import Invalid, Unsupported
from mamushka.spec.runtime import DeviceRule, Rlimit, User

IMAGE = {
    "Entrypoint": ["/entry"],
    "Cmd": ["a", "b"],
    "Env": ["PATH=/bin", "X=1"],
    "User": "web",
    "WorkingDir": "/srv/",
    "Volumes": {"/data": {}, "/tmp": {}},
    "Labels": {"a": "image", "b": "image"},
    "StopSignal": "SIGQUIT",
}


@pytest.mark.parametrize(
    ("asked", "command"),
    [
        (Settings("x"), ("/entry", "a", "b")),
        (Settings("x", command=("c",)), ("/entry", "c")),
        (Settings("x", entrypoint=("e",)), ("e",)),
        (Settings("x", entrypoint=("e",), command=("c",)), ("e", "c")),
        (Settings("x", entrypoint=(), command=("c",)), ("c",)),
    ],
)
def test_entrypoint_and_command(asked: Settings, command: tuple[str, ...]) -> None:
    assert bundle.blueprint(asked, IMAGE).command == command


def test_nothing_to_run() -> None:
    with pytest.raises(Invalid, match="no command specified"):
        bundle.blueprint(Settings("x"), {})
    with pytest.raises(Invalid, match="absolute"):
        bundle.blueprint(Settings("x", command=("c",), working_directory="srv"), {})


def test_what_the_image_says_and_what_wins() -> None:
    plan = bundle.blueprint(Settings("x", environment=("X=2", "Y=3"), labels={"b": "mine"}, user="7"), IMAGE)
    assert plan.environment == ("PATH=/bin", "X=2", "Y=3")
    assert plan.labels == {"a": "image", "b": "mine"}
    assert (plan.user, plan.working_directory, plan.stop_signal) == ("7", "/srv", "SIGQUIT")
    assert plan.volumes == ("/data", "/tmp")


def test_environment() -> None:
    assert bundle.environment(["A=1", "B=2"], ["A=3", "B"]) == ("A=3",)
    for bad in ("=x", "A=\0"):
        with pytest.raises(Invalid):
            bundle.environment([bad])


def test_mounts_go_from_the_root_down() -> None:
    asked = Settings(
        "x",
        mounts=(Mount("tmpfs", "/a/b/c", size=7), Mount("bind", "/a", "/", read_only=True), Mount("volume", "/v", "v")),
    )
    found = mounts.mounts(asked, mounts.Sources(volumes={"/v": "/volumes/v", "/data": "/volumes/x"}))
    depths = [item.destination.count("/") for item in found]
    assert depths == sorted(depths)
    by_path = {item.destination: item for item in found}
    assert by_path["/a"].options == ("rbind", "rprivate", "rro")
    assert by_path["/a/b/c"].options == ("nosuid", "nodev", "noexec", "size=7", "mode=1777")
    assert by_path["/v"].source == "/volumes/v" and by_path["/data"].source == "/volumes/x"
    assert "size=67108864" in by_path["/dev/shm"].options


def test_tmpfs_words_replace_the_default_ones() -> None:
    found = mounts.mount(Mount("tmpfs", "/t", options=("exec", "mode=700")), {})
    assert found.options == ("nosuid", "nodev", "exec", "mode=700")


@pytest.mark.parametrize(
    "bad",
    [
        Mount("bind", "/", "/usr"),
        Mount("bind", "relative", "/usr"),
        Mount("bind", "/a", "usr"),
        Mount("bind", "/a", "/no/such/place"),
        Mount("bind", "/a", "/usr", propagation="loud"),
    ],
)
def test_bad_mounts(bad: Mount) -> None:
    with pytest.raises(Invalid):
        mounts.mount(bad, {})


def test_a_sub_path_stays_in_its_volume(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").symlink_to("/etc")
    assert mounts.mount(Mount("volume", "/v", "v", subpath="in"), {"/v": str(tmp_path)}).source == f"{tmp_path}/in"
    for bad in ("out", "../..", "missing"):
        with pytest.raises(Invalid):
            mounts.mount(Mount("volume", "/v", "v", subpath=bad), {"/v": str(tmp_path)})


def test_image_volumes_give_way() -> None:
    asked = Settings("x", mounts=(Mount("bind", "/data/", "/"),))
    assert mounts.anonymous(asked, ("/data", "/tmp")) == ["/tmp"]


@pytest.fixture
def root(tmp_path: Path) -> int:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\nbad line\n5:x:77:77::/five:\n")
    (etc / "group").write_text("root:x:0:\nweb:x:34:\nlog:x:50:web,root\nadm:x:51:web\n")
    return os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)


@pytest.mark.parametrize(
    ("name", "user", "home"),
    [
        ("", User(0, 0, additional_gids=(0, 50)), "/root"),
        ("web", User(33, 34, additional_gids=(34, 50, 51)), "/srv"),
        ("33", User(33, 34, additional_gids=(34, 50, 51)), "/srv"),
        ("web:log", User(33, 50, additional_gids=(50,)), "/srv"),
        ("web:99", User(33, 99, additional_gids=(99,)), "/srv"),
        ("1234", User(1234, 0, additional_gids=(0,)), "/"),
        ("5", User(77, 77, additional_gids=(77,)), "/five"),
        (":", User(0, 0, additional_gids=(0, 50)), "/root"),
        (":99", User(0, 99, additional_gids=(99,)), "/root"),
        ("web:", User(33, 34, additional_gids=(34, 50, 51)), "/srv"),
        ("4294967294", User(4294967294, 0, additional_gids=(0,)), "/"),
        ("000033", User(33, 34, additional_gids=(34, 50, 51)), "/srv"),
    ],
)
def test_users(root: int, name: str, user: User, home: str) -> None:
    assert users.find(root, name) == users.Account(user, home)


def test_further_groups(root: int) -> None:
    assert users.find(root, "1000:1000", ("log", "7")).user == User(1000, 1000, additional_gids=(7, 50, 1000))


@pytest.mark.parametrize(
    "name",
    [
        "nobody", "web:nogroup", "4294967295", "99999999999", "-1", "+0", "0x0", "0o0", "1e3", "1_000", " 0", "0 ",
        "0\n", "\t0", "\u0660", "\uff10", "\u00b2", "\U0001d7d8", "0:-1", "0:0:0", "0::0", "0: 0", "0:\u0660", "0:0x0",
        "0:4294967295", "root ", "ROOT", "web\0", "x", "*", "/", "bad line",
    ],
)  # fmt: skip
def test_unknown_users(root: int, name: str) -> None:
    """CVE-2026-30892's class: what is read as root, or as anybody, without being that."""
    with pytest.raises(Invalid):
        users.find(root, name)


def test_accounts_do_not_lead_out_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "etc").symlink_to("/etc")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    assert users.find(fd, "") == users.Account(User(0, 0, additional_gids=(0,)), "/")
    os.close(fd)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary(max_size=300), st.text(max_size=12))
def test_any_passwd_is_read_or_invalid(tmp_path: Path, content: bytes, name: str) -> None:
    """Files of accounts are the image's: they give an account or Invalid."""
    (tmp_path / "etc").mkdir(exist_ok=True)
    for file in ("passwd", "group"):
        (tmp_path / "etc" / file).write_bytes(content)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        users.find(fd, name, (name,))
    except Invalid:
        pass
    finally:
        os.close(fd)


def test_limits_as_the_specification_says_them() -> None:
    found = limits.resources(Limits(memory=64 << 20, cpus=0.5, pids=9, io_weight=300))
    assert found.memory is not None and (found.memory.limit, found.memory.swap) == (64 << 20, 128 << 20)
    assert found.cpu is not None and (found.cpu.quota, found.cpu.period) == (50_000, 100_000)
    assert found.pids is not None and found.pids.limit == 9
    assert found.block_io is not None and found.block_io.weight == 300
    assert limits.resources(Limits()).memory is None


@pytest.mark.parametrize(
    "bad",
    [
        Limits(memory=1 << 20),
        Limits(memory_swap=1 << 30),
        Limits(memory=64 << 20, memory_swap=32 << 20),
        Limits(cpus=-1),
        Limits(cpus=100_000),
        Limits(cpus=1, cpu_quota_us=5),
    ],
)
def test_bad_limits(bad: Limits) -> None:
    with pytest.raises(Invalid):
        limits.check(bad)


def test_updating_limits() -> None:
    old = Limits(memory=1 << 30, cpu_quota_us=5, pids=3)
    assert merge(old, Limits(cpus=2.0)) == Limits(memory=1 << 30, cpus=2.0, pids=3)


def test_devices_and_ulimits() -> None:
    node, rule = limits.device(Device("/dev/null", "/dev/nothing", "r"))
    assert (node.path, node.type, node.major, node.minor) == ("/dev/nothing", "c", 1, 3)
    assert rule == DeviceRule(allow=True, type="c", major=1, minor=3, access="r")
    assert limits.device_rule("c 42:* rwm") == DeviceRule(allow=True, type="c", major=42, access="rwm")
    assert limits.rlimit(Ulimit("nofile", 5, -1)) == Rlimit("RLIMIT_NOFILE", hard=(1 << 64) - 1, soft=5)
    for bad in ("c 42 rwm", "x 1:1 r", "c 1:1 z", ""):
        with pytest.raises(Invalid):
            limits.device_rule(bad)
    for item in (Ulimit("files", 1, 1), Ulimit("nofile", 5, 4), Ulimit("nofile", -1, 4)):
        with pytest.raises(Invalid):
            limits.rlimit(item)
    for device in (Device("/no/such", "/x"), Device("/etc", "/x"), Device("/dev/null", "/x", "z")):
        with pytest.raises(Invalid):
            limits.device(device)


def test_signals() -> None:
    assert [signal_number(name) for name in ("TERM", "sigkill", "9", "RTMIN+3")] == [15, 9, 9, 37]
    for bad in ("NOPE", "0", "99", "RTMIN+99", "_BLOCK", ""):
        with pytest.raises(Invalid):
            signal_number(bad)


def test_walls_are_never_weaker_than_asked_for() -> None:
    assert choose(("container",))[0] == "container"
    name, reason = choose(("vm", "container"))
    assert name == "container" and "vm: " in reason
    with pytest.raises(Unsupported, match=r"vm: .*confidential: "):
        choose(("vm", "confidential"))
    with pytest.raises(Invalid):
        choose(("jail",))


def test_privileged_means_all_devices() -> None:
    nodes, rules = limits.devices(Settings("x", security=Security(privileged=True)))
    assert any(node.path == "/dev/null" for node in nodes) and rules == [DeviceRule(allow=True, access="rwm")]
