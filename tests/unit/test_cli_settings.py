import shlex
from typing import Any

import pytest

from mamushka.engine.settings import (
    Attachment,
    Device,
    Health,
    Limits,
    Mount,
    Namespaces,
    Port,
    Restart,
    Security,
    Settings,
    Throttle,
    Ulimit,
)
from mamushka.errors import Invalid, MamushkaError, Unsupported
from mamushka.interfaces.cli.options import parse
from mamushka.interfaces.cli.settings import settings
from mamushka.interfaces.cli.workload_options import RUN


def asked(line: str) -> Settings:
    return settings(parse(RUN, shlex.split(line), interspersed=False))


CASES: list[tuple[str, dict[str, Any]]] = [
    ("i", {}),
    ("-it i sh", {"stdin": True, "terminal": True, "command": ("sh",)}),
    ("-ti --rm i ls -l --color", {"stdin": True, "terminal": True, "remove": True, "command": ("ls", "-l", "--color")}),
    ("--rm=false i", {}),
    ("-d i", {}),
    ("--name web i", {"name": "web"}),
    ("--name=/web i", {"name": "web"}),
    ("-e A=1 -eB=2 --env C=3=4 -e A=9 i", {"environment": ("A=9", "B=2", "C=3=4")}),
    ("-w /srv -u 1000:50 i", {"working_directory": "/srv", "user": "1000:50"}),
    ("--group-add wheel --group-add 5 i", {"groups": ("wheel", "5")}),
    ("--entrypoint /x i y", {"entrypoint": ("/x",), "command": ("y",)}),
    ("--entrypoint '' i", {"entrypoint": ()}),
    ("-h box --domainname example.org i", {"hostname": "box", "domainname": "example.org"}),
    ("-v /a:/b:ro i", {"mounts": (Mount("bind", "/b", "/a", read_only=True, create_source=True),)}),
    ("-v data:/b i", {"mounts": (Mount("volume", "/b", "data"),)}),
    ("-v /b i", {"mounts": (Mount("volume", "/b"),)}),
    ("-v data:/b:nocopy,ro i", {"mounts": (Mount("volume", "/b", "data", read_only=True, copy_up=False),)}),
    ("-v /a:/b:rslave i", {"mounts": (Mount("bind", "/b", "/a", propagation="rslave", create_source=True),)}),
    ("--mount type=bind,src=/a,dst=/b,ro i", {"mounts": (Mount("bind", "/b", "/a", read_only=True),)}),
    ("--mount source=data,target=/b i", {"mounts": (Mount("volume", "/b", "data", labels={}),)}),
    (
        "--mount 'type=volume,src=v,dst=/b,volume-nocopy,volume-label=a=b,volume-subpath=x' i",
        {"mounts": (Mount("volume", "/b", "v", copy_up=False, subpath="x", labels={"a": "b"}),)},
    ),
    (
        "--mount type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=700 i",
        {"mounts": (Mount("tmpfs", "/t", size=1 << 20, mode=0o700),)},
    ),
    (
        "--tmpfs /run:size=64k,mode=755,exec,noatime i",
        {"mounts": (Mount("tmpfs", "/run", size=65536, mode=0o755, options=("exec", "noatime")),)},
    ),
    ("-p 8080:80 i", {"ports": (Port(80, "tcp", "", 8080),)}),
    ("-p 80 -p 53:53/udp i", {"ports": (Port(80), Port(53, "udp", "", 53))}),
    ("-p 127.0.0.1::80 i", {"ports": (Port(80, "tcp", "127.0.0.1", 0),)}),
    ("-p '[::1]:8080:80' i", {"ports": (Port(80, "tcp", "::1", 8080),)}),
    ("-p 8000-8010:80/udp i", {"ports": (Port(80, "udp", "", 8000, 8010),)}),
    ("-p 8000-8001:90-91 i", {"ports": (Port(90, "tcp", "", 8000), Port(91, "tcp", "", 8001))}),
    ("-P --expose 80 --expose 90-91/udp i", {"publish_all": True, "expose": ("80/tcp", "90/udp", "91/udp")}),
    ("--network none i", {"networks": (Attachment("none"),)}),
    ("--net host i", {"networks": (Attachment("host"),)}),
    (
        "--network back --network-alias db --network-alias pg --ip 10.0.0.7 i",
        {"networks": (Attachment("back", ("db", "pg"), "10.0.0.7"),)},
    ),
    (
        "--network name=a,alias=x,ip=10.1.0.2 --network b i",
        {"networks": (Attachment("a", ("x",), "10.1.0.2"), Attachment("b"))},
    ),
    ("--network container:web i", {"networks": (Attachment("container:web"),)}),
    ("--add-host db:10.0.0.5 --add-host v6=[::1] i", {"extra_hosts": ("db:10.0.0.5", "v6:::1")}),
    (
        "--dns 1.1.1.1 --dns-search a.b --dns-option ndots:2 i",
        {"dns": ("1.1.1.1",), "dns_search": ("a.b",), "dns_options": ("ndots:2",)},
    ),
    (
        "-m 512m --memory-swap -1 --memory-reservation 256M i",
        {"limits": Limits(memory=512 << 20, memory_swap=-1, memory_reservation=256 << 20)},
    ),
    ("--cpus 1.5 -c 512 --cpuset-cpus 0-1 i", {"limits": Limits(cpus=1.5, cpu_shares=512, cpuset_cpus="0-1")}),
    ("--cpu-quota 50000 --cpu-period 100000 i", {"limits": Limits(cpu_quota_us=50000, cpu_period_us=100000)}),
    ("--pids-limit 100 --blkio-weight 300 i", {"limits": Limits(pids=100, io_weight=300)}),
    (
        "--memory-swappiness 0 --oom-score-adj -5 --oom-kill-disable i",
        {"limits": Limits(memory_swappiness=0, oom_score_adj=-5, oom_kill_disable=True)},
    ),
    (
        "--device-read-bps /dev/sda:1mb --device-write-iops /dev/sda:7 i",
        {"limits": Limits(read_bps=(Throttle("/dev/sda", 1 << 20),), write_iops=(Throttle("/dev/sda", 7),))},
    ),
    ("--shm-size 1g --read-only --init i", {"shm_size": 1 << 30, "read_only": True, "init": True}),
    (
        "--cap-add NET_ADMIN --cap-drop ALL i",
        {"security": Security(capabilities_add=("NET_ADMIN",), capabilities_drop=("ALL",))},
    ),
    ("--privileged i", {"security": Security(privileged=True)}),
    (
        "--security-opt no-new-privileges=false --security-opt seccomp=unconfined i",
        {"security": Security(no_new_privileges=False, seccomp="unconfined")},
    ),
    (
        "--security-opt label:disable --security-opt systempaths=unconfined --security-opt apparmor=x i",
        {"security": Security(selinux_label=("disable",), unmask=("ALL",), apparmor="x")},
    ),
    ("--device /dev/fuse i", {"devices": (Device("/dev/fuse", "/dev/fuse"),)}),
    ("--device /dev/a:/dev/b:r i", {"devices": (Device("/dev/a", "/dev/b", "r"),)}),
    ("--device-cgroup-rule 'c 42:* rmw' i", {"device_rules": ("c 42:* rmw",)}),
    ("--platform linux/arm64 i", {"platform": "linux/arm64"}),
    ("--restart on-failure:3 i", {"restart": Restart("on-failure", 3)}),
    ("--restart unless-stopped i", {"restart": Restart("unless-stopped")}),
    ("-l a=b --label c i", {"labels": {"a": "b", "c": ""}}),
    ("--annotation x=y --sysctl a.b=9 i", {"annotations": {"x": "y"}, "sysctls": {"a.b": "9"}}),
    ("--stop-timeout 3 --stop-signal INT i", {"stop_timeout": 3, "stop_signal": "INT"}),
    ("--ulimit nofile=10:20 --ulimit core=-1 i", {"ulimits": (Ulimit("nofile", 10, 20), Ulimit("core", -1, -1))}),
    (
        "--userns 100000:65536 --pid host --ipc shareable --uts host --cgroupns private i",
        {"namespaces": Namespaces(user="100000:65536", pid="host", ipc="private", uts="host", cgroup="private")},
    ),
    ("--pid container:db i", {"namespaces": Namespaces(pid="container:db")}),
    ("--runtime vm,container i", {"runtime": ("vm", "container")}),
    (
        "--health-cmd 'curl localhost' --health-interval 5s --health-retries 2 i",
        {"health": Health(("CMD-SHELL", "curl localhost"), interval=5.0, retries=2)},
    ),
    ("--no-healthcheck i", {"health": Health(("NONE",))}),
    ("--log-driver none --log-opt max-size=1m i", {"log_driver": "none", "log_options": {"max-size": "1m"}}),
    ("-- i --rm", {"command": ("--rm",)}),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), CASES, ids=[line for line, _ in CASES])
def test_a_command_line_becomes_settings(line: str, expected: dict[str, Any]) -> None:
    assert asked(line) == Settings(
        image="i", **{"labels": {}, "annotations": {}, "sysctls": {}, "log_options": {}, **expected}
    )


WRONG = [
    ("-m many i", "not a size"),
    ("-m -1 i", "not a size"),
    ("--cpus two i", "not a number"),
    ("--cpus 1 --cpu-quota 5 i", "contradicts"),
    ("-m 10m --memory-swap 5m i", "less than --memory"),
    ("--blkio-weight 5 i", "not between"),
    ("--oom-score-adj 2000 i", "not between"),
    ("--memory-swappiness 101 i", "not between"),
    ("-p 70000:80 i", "not a port number"),
    ("-p 80:70000 i", "not a port number"),
    ("-p 1-3:1-2 i", "cannot answer"),
    ("-p 0-3:1 i", "begins with 0"),
    ("-p 9-3:1-2 i", "ends before it starts"),
    ("-p 80/sctp i", "not a protocol"),
    ("-p nowhere:1:2 i", "not an address"),
    ("-v a:b i", "not absolute"),
    ("-v /a:/ i", "whole root"),
    ("-v /a:/b:weird i", "not an option of -v"),
    ("-v 'we ird:/b' i", "neither a path nor the name"),
    ("-v /a:/b -v /c:/b i", "two mounts for /b"),
    ("-v a::b i", "not SOURCE"),
    ("--mount type=foo,dst=/b i", "not a type of mount"),
    ("--mount type=bind,dst=/b i", "source is missing"),
    ("--mount type=bind,src=/a i", "target is missing"),
    ("--mount type=bind,src=/a,dst=/b,tmpfs-size=1 i", "not a field of a bind mount"),
    ("--mount 'type=bind,\"src=/a,dst=/b' i", "not closed"),
    ("--tmpfs /t:mode=9 i", "not an octal mode"),
    ("--ulimit files=1 i", "not a resource limit"),
    ("--ulimit nofile=5:3 i", "above the hard limit"),
    ("--ulimit nofile i", "the limit is missing"),
    ("--device fuse i", "not SOURCE"),
    ("--device-cgroup-rule 'x 1:1 r' i", "not TYPE"),
    ("--device-read-bps sda:1 i", "not a device and a rate"),
    ("--restart sometimes i", "not a restart policy"),
    ("--restart always:3 i", "takes no number"),
    ("--restart always --rm i", "contradict"),
    ("--network host --network b i", "no further networks"),
    ("--network none --ip 1.2.3.4 i", "no further networks"),
    ("--network name=a,foo=b i", "not a field of --network"),
    ("--add-host db i", "not NAME:ADDRESS"),
    ("--security-opt magic i", "not known"),
    ("--security-opt seccomp=/nowhere i", "cannot read the seccomp profile"),
    ("--pid sometimes i", "not known"),
    ("--ipc container: i", "not known"),
    ("--pull often i", "not a pull policy"),
    ("--gpus all i", "not supported"),
    ("--link a:b i", "not supported"),
    ("--runtime , i", "names no wall"),
    ("-w here i", "not absolute"),
    ("-e =x i", "has no name"),
    ("-l =x i", "key is missing"),
    ("--env-file /nowhere i", "does not exist"),
    ("--health-cmd x --no-healthcheck i", "contradict"),
    ("--health-interval 5 i", "not a duration"),
    ("--stop-timeout soon i", "not a whole number"),
    ("''", "name is empty"),
    ("--nmae x i", "unknown option --nmae"),
    ("-x i", "unknown option -x"),
    ("-itx i", "unknown option -x in '-itx'"),
    ("--name", "needs a value"),
    ("--rm=perhaps i", "not true or false"),
]


@pytest.mark.parametrize(("line", "reason"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_command_line_is_refused_with_the_reason(line: str, reason: str) -> None:
    with pytest.raises(MamushkaError, match=reason):
        asked(line)


def test_unknown_options_come_with_the_nearest_one_that_exists() -> None:
    with pytest.raises(Invalid) as caught:
        asked("--nmae x i")
    assert caught.value.hint == "did you mean --name?"


def test_gpus_are_unsupported_rather_than_wrong() -> None:
    with pytest.raises(Unsupported):
        asked("--gpus all i")


def test_bare_variables_take_the_callers_value_and_files_give_way(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("HANDED", "on")
    monkeypatch.delenv("ABSENT", raising=False)
    path = tmp_path / "env"
    path.write_bytes(b"\xef\xbb\xbf# a comment\n\nA=from file\n  B=indented\nHANDED\n")
    found = asked(f"--env-file {path} -e A=mine -e ABSENT i").environment
    assert found == ("A=mine", "B=indented", "HANDED=on")


def test_files_of_labels_and_profiles_are_read(tmp_path: Any) -> None:
    (tmp_path / "labels").write_text("a=1\nb=2\n")
    (tmp_path / "profile").write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    found = asked(f"--label-file {tmp_path}/labels -l b=3 --security-opt seccomp={tmp_path}/profile i")
    assert found.labels == {"a": "1", "b": "3"}
    assert found.security.seccomp == '{"defaultAction": "SCMP_ACT_ALLOW"}'


def test_relative_sources_become_absolute(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert asked("-v .:/w i").mounts[0].source == str(tmp_path)
    assert asked("-v ./x/../y:/w i").mounts[0].source == f"{tmp_path}/y"
