"""Resources as writes: what both cgroup versions are told, without a kernel."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.container.cgroups import ownership, v1, v2
from mamushka.container.cgroups.layout import resolve
from mamushka.errors import Invalid, Unsupported
from mamushka.spec.runtime import (
    CPU,
    BlockIO,
    Config,
    HugepageLimit,
    IDMapping,
    InterfacePriority,
    Linux,
    Memory,
    Mount,
    Namespace,
    Network,
    Pids,
    Process,
    Rdma,
    Resources,
    ThrottleDevice,
    User,
    WeightDevice,
)
from mamushka.values import replace

MB = 1 << 20


def writes(items):
    return [(item.file, item.text) for item in items]


@pytest.mark.parametrize(
    ("resources", "old", "new"),
    [
        (Resources(), [], []),
        (
            Resources(memory=Memory(limit=64 * MB, swap=96 * MB, reservation=32 * MB)),
            [
                ("memory.limit_in_bytes", str(64 * MB)),
                ("memory.memsw.limit_in_bytes", str(96 * MB)),
                ("memory.soft_limit_in_bytes", str(32 * MB)),
            ],
            [("memory.max", str(64 * MB)), ("memory.swap.max", str(32 * MB)), ("memory.low", str(32 * MB))],
        ),
        (
            Resources(memory=Memory(limit=-1)),
            [("memory.limit_in_bytes", "-1"), ("memory.memsw.limit_in_bytes", "-1")],
            [("memory.max", "max")],
        ),
        (
            Resources(memory=Memory(limit=64 * MB, swap=-1)),
            [("memory.limit_in_bytes", str(64 * MB)), ("memory.memsw.limit_in_bytes", "-1")],
            [("memory.max", str(64 * MB)), ("memory.swap.max", "max")],
        ),
        (
            Resources(cpu=CPU(shares=512, quota=50000, period=100000, cpus="0-1", mems="0")),
            [
                ("cpu.shares", "512"),
                ("cpu.cfs_period_us", "100000"),
                ("cpu.cfs_quota_us", "50000"),
                ("cpuset.cpus", "0-1"),
                ("cpuset.mems", "0"),
            ],
            [("cpu.weight", "59"), ("cpu.max", "50000 100000"), ("cpuset.cpus", "0-1"), ("cpuset.mems", "0")],
        ),
        (Resources(cpu=CPU(quota=-1)), [("cpu.cfs_quota_us", "-1")], [("cpu.max", "max")]),
        (Resources(pids=Pids(limit=64)), [("pids.max", "64")], [("pids.max", "64")]),
        (Resources(pids=Pids(limit=-1)), [("pids.max", "max")], [("pids.max", "max")]),
        (
            Resources(block_io=BlockIO(weight=500, throttle_read_bps_device=(ThrottleDevice(8, 0, MB),))),
            [("blkio.bfq.weight", "500"), ("blkio.throttle.read_bps_device", f"8:0 {MB}")],
            [("io.bfq.weight", "500"), ("io.max", f"8:0 rbps={MB}")],
        ),
        (
            Resources(block_io=BlockIO(weight_device=(WeightDevice(8, 0, weight=100),))),
            [("blkio.bfq.weight_device", "8:0 100")],
            [("io.bfq.weight", "8:0 100")],
        ),
        (
            Resources(hugepage_limits=(HugepageLimit("2MB", 4 * MB),)),
            [("hugetlb.2MB.limit_in_bytes", str(4 * MB)), ("hugetlb.2MB.rsvd.limit_in_bytes", str(4 * MB))],
            [("hugetlb.2MB.max", str(4 * MB)), ("hugetlb.2MB.rsvd.max", str(4 * MB))],
        ),
        (
            Resources(rdma={"mlx5_0": Rdma(hca_handles=2, hca_objects=3)}),
            [("rdma.max", "mlx5_0 hca_handle=2 hca_object=3")],
            [("rdma.max", "mlx5_0 hca_handle=2 hca_object=3")],
        ),
    ],
)
def test_the_same_resources_in_both_versions(resources, old, new) -> None:
    assert writes(v1.settings(resources)) == old
    assert writes(v2.settings(resources)) == new


def test_what_is_the_same_in_one_version_only() -> None:
    """The rest of the specification's resources, as cgroup v1 writes them."""
    memory = Memory(swappiness=7, disable_oom_killer=True, kernel=-1, kernel_tcp=MB, use_hierarchy=True)
    assert writes(v1.settings(Resources(memory=memory))) == [
        ("memory.swappiness", "7"),
        ("memory.oom_control", "1"),
        ("memory.kmem.tcp.limit_in_bytes", str(MB)),
    ]
    cpu = CPU(burst=5, realtime_runtime=3, realtime_period=9, idle=1)
    assert writes(v1.settings(Resources(cpu=cpu))) == [
        ("cpu.cfs_burst_us", "5"), ("cpu.rt_period_us", "9"), ("cpu.rt_runtime_us", "3"), ("cpu.idle", "1"),
    ]  # fmt: skip
    assert writes(v2.settings(Resources(cpu=CPU(burst=5, idle=1, shares=9)))) == [
        ("cpu.idle", "1"), ("cpu.max.burst", "5"),
    ]  # fmt: skip
    block = BlockIO(leaf_weight=20, weight_device=(WeightDevice(8, 0, leaf_weight=30),))
    assert writes(v1.settings(Resources(block_io=block))) == [
        ("blkio.leaf_weight", "20"), ("blkio.leaf_weight_device", "8:0 30"),
    ]  # fmt: skip


def test_every_throttle_of_block_devices() -> None:
    one = (ThrottleDevice(8, 16, 5),)
    block = BlockIO(
        throttle_read_bps_device=one, throttle_write_bps_device=one, throttle_read_iops_device=one,
        throttle_write_iops_device=one,
    )  # fmt: skip
    assert writes(v1.settings(Resources(block_io=block))) == [
        (f"blkio.throttle.{kind}_device", "8:16 5") for kind in ("read_bps", "write_bps", "read_iops", "write_iops")
    ]
    assert writes(v2.settings(Resources(block_io=block))) == [
        ("io.max", f"8:16 {kind}=5") for kind in ("rbps", "wbps", "riops", "wiops")
    ]


@pytest.mark.parametrize(
    "resources",
    [
        Resources(memory=Memory(swappiness=0)),
        Resources(memory=Memory(disable_oom_killer=True)),
        Resources(memory=Memory(kernel=MB)),
        Resources(memory=Memory(kernel_tcp=MB)),
        Resources(memory=Memory(use_hierarchy=False)),
        Resources(block_io=BlockIO(leaf_weight=20)),
    ],
)
def test_what_version_two_lacks_is_refused_and_never_passed_over(resources) -> None:
    with pytest.raises(Unsupported):
        v2.settings(resources)
    for gone in (Memory(kernel=MB), Memory(use_hierarchy=False)):
        with pytest.raises(Unsupported):
            v1.settings(Resources(memory=gone))


def test_what_only_one_version_has() -> None:
    network = Resources(network=Network(class_id=1, priorities=(InterfacePriority("eth0", 5),)))
    assert writes(v1.settings(network)) == [("net_cls.classid", "1"), ("net_prio.ifpriomap", "eth0 5")]
    with pytest.raises(Unsupported, match="network class"):
        v2.settings(network)
    with pytest.raises(Unsupported, match="real-time"):
        v2.settings(Resources(cpu=CPU(realtime_runtime=1)))
    assert writes(v2.settings(Resources(unified={"memory.high": "1M"}))) == [("memory.high", "1M")]


@pytest.mark.parametrize("file", ["memory", "../memory.max", "cgroup.procs", "cgroup.kill", "", ".", "a/b.c"])
def test_the_unified_map_names_files_of_controllers_only(file: str) -> None:
    with pytest.raises(Invalid):
        v2.unified({file: "1"})


@pytest.mark.parametrize(
    "resources",
    [
        Resources(memory=Memory(swap=64 * MB)),
        Resources(memory=Memory(limit=64 * MB, swap=32 * MB)),
        Resources(block_io=BlockIO(weight=5)),
        Resources(block_io=BlockIO(weight=1001)),
        Resources(hugepage_limits=(HugepageLimit("../2MB", 1),)),
        Resources(hugepage_limits=(HugepageLimit("2", 1),)),
        Resources(rdma={"mlx5_0": Rdma()}),
        Resources(rdma={"a b": Rdma(hca_handles=1)}),
    ],
)
@pytest.mark.parametrize("settings", [v1.settings, v2.settings])
def test_what_contradicts_itself_is_invalid(settings, resources) -> None:
    with pytest.raises(Invalid):
        settings(resources)


def test_shares_become_weights_on_a_curve_through_the_ordinary() -> None:
    assert [v2.weight(shares) for shares in (0, 2, 1024, 262144, 1 << 40)] == [1, 1, 100, 10000, 10000]
    curve = [v2.weight(shares) for shares in range(2, 262145, 997)]
    assert curve == sorted(curve)


@pytest.mark.parametrize(
    ("given", "path"),
    [("", "/mamushka/box"), ("a/b", "/mamushka/a/b"), ("/a//b/", "/a/b"), ("/docker/0123", "/docker/0123")],
)
def test_where_a_cgroup_lies(given: str, path: str) -> None:
    assert resolve(given, "box") == path


@pytest.mark.parametrize("given", ["/", "//", "..", "/a/../../b", "a/./b", "/a\nb", "x" * 256])
def test_a_path_that_leaves_its_place_is_invalid(given: str) -> None:
    with pytest.raises(Invalid):
        resolve(given, "box")


def test_a_systemd_unit_is_not_pretended() -> None:
    with pytest.raises(Unsupported, match="systemd"):
        resolve("system.slice:docker:0123", "box")


@given(st.text(max_size=20))
def test_any_path_is_below_the_root_or_refused(text: str) -> None:
    try:
        path = resolve(text, "box")
    except (Invalid, Unsupported):
        return
    assert path.startswith("/") and len(path) > 1 and not {"", ".", ".."} & {*path.split("/")[1:]}


def test_whom_a_cgroup_belongs_to(tmp_path, monkeypatch) -> None:
    """The conditions of config-linux.md#cgroup-ownership, one by one."""
    mount = Mount("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid",))
    maps = (IDMapping(0, 100000, 10), IDMapping(10, 5000, 5))
    linux = Linux(namespaces=(Namespace("cgroup"),), uid_mappings=maps)
    config = Config("1.3.0", Process(user=User(uid=12)), mounts=(mount,), linux=linux)
    assert ownership.owner(config) == 5002
    assert ownership.owner(replace(config, process=Process(user=User(uid=77)))) == -1
    assert ownership.owner(replace(config, linux=replace(linux, uid_mappings=()))) == 12
    assert ownership.owner(replace(config, mounts=(replace(mount, options=("ro",)),))) == -1
    assert ownership.owner(replace(config, mounts=())) == -1
    assert ownership.owner(replace(config, linux=replace(linux, namespaces=(Namespace("cgroup", "/x"),)))) == -1
    given = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append((path, uid, gid)))
    ownership.give("/x", 5)
    assert given[0] == ("/x/", 5, -1) and ("/x/cgroup.procs", 5, -1) in given and ("/x/memory.max", 5, -1) not in given
