import time

import pytest

from mamushka.engine.events import Event
from mamushka.engine.images import ImageSummary
from mamushka.engine.networks import NetworkSummary
from mamushka.engine.settings import Mount, Port, Settings
from mamushka.engine.volumes import VolumeSummary
from mamushka.engine.workload import Connection, Published, Workload
from mamushka.interfaces.docker import container, event, image, network, volume
from mamushka.interfaces.docker.container_config import _bindings
from mamushka.interfaces.docker.template import Template
from mamushka.interfaces.docker.template_functions import to_json
from mamushka.runtime import Exit
from mamushka.values import replace

NOW = 1_700_000_000.0
WEB = Workload(
    id="0123456789abcdef" * 4,
    name="web",
    settings=Settings(
        image="nginx",
        labels={"tier": "front"},
        expose=("80/tcp", "443/tcp"),
        ports=(Port(80, "tcp", "", 8080), Port(81, "tcp", "", 8090, 8099)),
        mounts=(Mount("bind", "/srv", "/data", read_only=True), Mount("tmpfs", "/t", size=4096)),
        terminal=True,
    ),
    image_id="sha256:" + "ab" * 32,
    image_name="nginx",
    command=("nginx", "-g", "daemon off; and more"),
    environment=("A=1",),
    status="running",
    created=NOW - 7300,
    started=NOW - 180,
    pid=42,
    connections=(Connection("bridge", "n" * 64, "172.17.0.2", 16, "172.17.0.1", mac="02:42:00:00:00:01"),),
    published=(Published(80, "tcp", "", 8080),),
    volumes=(("/var/lib", "v1"),),
    log_path="/x/log",
    hostname="box",
    directory="/x",
)


def test_a_row_of_ps() -> None:
    row = container.row(WEB, now=NOW)
    assert row["ID"] == "0123456789ab"
    assert row["Command"] == '"nginx -g daemon off…"'
    assert row["RunningFor"] == "2 hours ago"
    assert row["Status"] == "Up 3 minutes"
    assert row["Ports"] == "0.0.0.0:8080->80/tcp, 443/tcp"
    assert row["Mounts"] == "/data,v1"
    assert Template('{{.Names}} {{.Label "tier"}} {{.Networks}}').render(row) == "web front bridge"


def test_the_status_says_how_it_is() -> None:
    def said(**changes: object) -> str:
        return container.status(replace(WEB, **changes), NOW)

    assert said(status="paused") == "Up 3 minutes (Paused)"
    assert said(status="created", started=0.0) == "Created"
    assert said(status="exited", finished=NOW - 7200, exit=Exit(signal=9)) == "Exited (137) 2 hours ago"
    assert said(status="restarting", finished=NOW - 2, exit=Exit(code=3)) == "Restarting (3) 2 seconds ago"
    assert said(status="dead") == "Dead"


def test_inspect_has_the_fields_that_scripts_read() -> None:
    document = container.inspect(WEB)
    for source, text in [
        ("{{.State.Running}}", "true"),
        ("{{.NetworkSettings.IPAddress}}", "172.17.0.2"),
        ("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "172.17.0.2"),
        ('{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}', "8080"),
        ("{{.HostConfig.NetworkMode}}", "bridge"),
        ("{{.Config.Tty}} {{.Config.Hostname}}", "true box"),
        ("{{range .Mounts}}{{.Type}}:{{.Destination}} {{end}}", "bind:/srv volume:/var/lib "),
        ("{{json .HostConfig.Binds}}", '["/data:/srv:ro"]'),
        ("{{.State.FinishedAt}}", "0001-01-01T00:00:00Z"),
        ("{{.Path}} {{index .Args 0}}", "nginx -g"),
    ]:  # fmt: skip
        assert Template(source).render(document) == text, source
    assert to_json(document)


def test_lines_of_port() -> None:
    published = [Published(80, "tcp", "", 8080), Published(53, "udp", "::1", 53)]
    assert container.port_lines(published) == ["53/udp -> [::1]:53", "80/tcp -> 0.0.0.0:8080"]


def test_an_image_has_a_row_per_name() -> None:
    summary = ImageSummary(
        id="sha256:" + "cd" * 32,
        digest="sha256:" + "ef" * 32,
        names=("localhost:5000/x:1", "y:latest"),
        digests=("y@sha256:" + "ef" * 32,),
        created=time.time() - 7200,
        size=7_050_000,
        platform="linux/arm64/v8",
        layers=("sha256:1",),
        config={"config": {"Env": ("A=1",)}, "history": [{"comment": "c"}]},
    )
    rows = list(image.rows(summary))
    assert [(row["Repository"], row["Tag"]) for row in rows] == [("localhost:5000/x", "1"), ("y", "latest")]
    assert (rows[0]["ID"], rows[0]["Size"], rows[0]["CreatedSince"]) == ("cd" * 6, "7.05MB", "2 hours ago")
    assert [row["Digest"] for row in rows] == ["<none>", "sha256:" + "ef" * 32]
    assert [row["Repository"] for row in image.rows(replace(summary, names=(), digests=()))] == ["<none>"]
    document = image.inspect(summary)
    assert (document["Os"], document["Architecture"], document["Variant"]) == ("linux", "arm64", "v8")
    assert document["Config"] == {"Env": ["A=1"]} and document["Comment"] == "c"


def test_networks_volumes_and_events() -> None:
    member = Connection("back", "n", "10.0.0.2", 24, aliases=("db",))
    net = NetworkSummary(
        "n" * 64, "back", "bridge", NOW, "10.0.0.0/24", "10.0.0.1", interface="br0", members={"w": member}
    )
    document = network.inspect(net)
    assert document["IPAM"]["Config"] == [{"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.1"}]
    assert document["Containers"]["w"]["IPv4Address"] == "10.0.0.2/24"
    assert network.row(net)["ID"] == "n" * 12
    assert volume.inspect(VolumeSummary("v", "/v", NOW))["Mountpoint"] == "/v"
    happened = Event(NOW, "workload", "die", "wwww", {"image": "i", "exitCode": "1"})
    assert event.line(happened).endswith(" container die wwww (exitCode=1, image=i)")
    assert event.message(happened)["Actor"] == {"ID": "wwww", "Attributes": {"image": "i", "exitCode": "1"}}
    assert event.message(happened)["status"] == "die"


# What dockerd 20.10 answers, by section; clients read any of these.
DOCKERS_KEYS = {
    "": "AppArmorProfile Args Config Created Driver ExecIDs GraphDriver HostConfig HostnamePath HostsPath Id Image "
    "LogPath MountLabel Mounts Name NetworkSettings Path Platform ProcessLabel ResolvConfPath RestartCount State",
    "State": "Dead Error ExitCode FinishedAt OOMKilled Paused Pid Restarting Running StartedAt Status",
    "HostConfig": "AutoRemove Binds BlkioDeviceReadBps BlkioDeviceReadIOps BlkioDeviceWriteBps BlkioDeviceWriteIOps "
    "BlkioWeight BlkioWeightDevice CapAdd CapDrop Cgroup CgroupParent CgroupnsMode ConsoleSize ContainerIDFile "
    "CpuCount CpuPercent CpuPeriod CpuQuota CpuRealtimePeriod CpuRealtimeRuntime CpuShares CpusetCpus CpusetMems "
    "DeviceCgroupRules DeviceRequests Devices Dns DnsOptions DnsSearch ExtraHosts GroupAdd IOMaximumBandwidth "
    "IOMaximumIOps IpcMode Isolation KernelMemory KernelMemoryTCP Links LogConfig MaskedPaths Memory "
    "MemoryReservation MemorySwap MemorySwappiness NanoCpus NetworkMode OomKillDisable OomScoreAdj PidMode PidsLimit "
    "PortBindings Privileged PublishAllPorts ReadonlyPaths ReadonlyRootfs RestartPolicy Runtime SecurityOpt ShmSize "
    "Tmpfs UTSMode Ulimits UsernsMode VolumeDriver VolumesFrom",
    "Config": "AttachStderr AttachStdin AttachStdout Cmd Domainname Entrypoint Env ExposedPorts Hostname Image Labels "
    "OnBuild OpenStdin StdinOnce Tty User Volumes WorkingDir",
    "NetworkSettings": "Bridge EndpointID Gateway GlobalIPv6Address GlobalIPv6PrefixLen HairpinMode IPAddress "
    "IPPrefixLen IPv6Gateway LinkLocalIPv6Address LinkLocalIPv6PrefixLen MacAddress Networks Ports SandboxID "
    "SandboxKey SecondaryIPAddresses SecondaryIPv6Addresses",
}


@pytest.mark.parametrize("section", DOCKERS_KEYS)
def test_inspect_has_every_key_of_dockers(section: str) -> None:
    document = container.inspect(WEB)
    assert set(DOCKERS_KEYS[section].split()) <= set(document[section] if section else document)


def test_what_has_ended_answers_on_no_port() -> None:
    gone = replace(WEB, status="exited", exit=Exit(code=0))
    assert container.row(gone)["Ports"] == ""
    settings = container.inspect(gone)["NetworkSettings"]
    assert (settings["Ports"], settings["IPAddress"], settings["Networks"]) == ({}, "", {})


def test_ports_as_they_were_asked_for() -> None:
    assert _bindings(WEB.settings.ports) == {
        "80/tcp": [{"HostIp": "", "HostPort": "8080"}],
        "81/tcp": [{"HostIp": "", "HostPort": "8090-8099"}],
    }
    assert _bindings((Port(5),)) == {"5/tcp": [{"HostIp": "", "HostPort": ""}]}
