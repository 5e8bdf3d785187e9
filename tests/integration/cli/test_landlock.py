"""``--security-opt landlock=…``, from what is typed, or said in Python, to what a program may do."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import mamushka as sdk
from mamushka.engine.engine import Engine
from mamushka.linux import landlock
from tests import peers

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]
ABI = landlock.abi()
pytestmark = [pytest.mark.root, pytest.mark.skipif(not ABI, reason="this kernel has no Landlock")]
AGE = "" if ABI >= 5 else f",abi:{ABI}"
ALONE = ("--network", "none")
TRY = "touch /opt/x && echo opt; touch /srv/x || echo refused"


@pytest.mark.parametrize("init", [(), ("--init",)])
def test_an_option_restricts_any_program(mamushka: Command, init: tuple[str, ...]) -> None:
    option = f"landlock=rx:/usr,rw:/opt,read:/etc,rw:/dev{AGE}"
    done = mamushka("run", "--rm", *ALONE, *init, "--security-opt", option, "host", "/usr/bin/sh", "-c", TRY)
    assert (done.returncode, done.stdout.split()) == (0, [b"opt", b"refused"]), done.stderr


def test_items_of_several_options_are_one_policy(mamushka: Command) -> None:
    options = [f"--security-opt=landlock={item}" for item in ("ro", f"rw:/opt{AGE}")]
    done = mamushka("run", "--rm", *ALONE, *options, "host", "sh", "-c", TRY)
    assert done.stdout.split() == [b"opt", b"refused"]


def test_a_policy_in_a_file(mamushka: Command, tmp_path: Path) -> None:
    version = min(ABI, 5)
    policy = {
        "ruleset": [{"handledAccessFs": [f"v{version}.all"]}],
        "pathBeneath": [
            {"allowedAccess": ["ro"], "parent": ["/"]},
            {"allowedAccess": [f"v{version}.all"], "parent": ["/opt"]},
        ],
    }
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    option = f"--security-opt=landlock={tmp_path}/policy.json"
    done = mamushka("run", "--rm", *ALONE, option, "--init", "host", "sh", "-c", TRY)
    assert done.stdout.split() == [b"opt", b"refused"]


def test_it_is_seen_and_holds_for_exec_and_the_next_start(mamushka: Command, unique: str) -> None:
    policy = f"ro,rw:/opt{AGE}"
    mamushka("run", "-d", "--name", unique, *ALONE, "--security-opt", f"landlock={policy}", "host", "sleep", "60")
    try:
        shown = json.loads(mamushka("inspect", unique).stdout)[0]["HostConfig"]
        assert f"landlock={policy}" in shown["SecurityOpt"]
        for options in ((), ("--privileged",), ("--user", "1000")):
            done = mamushka("exec", *options, unique, "sh", "-c", "touch /srv/x || echo refused")
            assert done.stdout == b"refused\n"
        mamushka("restart", "-t", "0", unique)
        assert mamushka("exec", unique, "sh", "-c", TRY).stdout.split() == [b"opt", b"refused"]
    finally:
        mamushka("rm", "-f", unique)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ("", b"is not an item"),
        ("rwx:/x", b"'rwx' is no right"),
        ("ro:usr", b"absolute path"),
        ("nowhere.json", b"cannot read the Landlock policy"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_made(mamushka: Command, policy: str, reason: bytes) -> None:
    done = mamushka("run", *ALONE, "--security-opt", f"landlock={policy}", "host", "true")
    assert done.returncode == 125 and reason in done.stderr
    assert mamushka("ps", "-aq").stdout == b""


def test_the_doctor_says_what_it_can_restrict(mamushka: Command) -> None:
    done = mamushka("doctor")
    assert b"Landlock" in done.stdout and f"ABI {ABI}".encode() in done.stdout


def test_any_program_in_any_directory(mamushka: Command, tmp_path: Path) -> None:
    """The wall around a root that is no image: the rules are for paths in it."""
    (tmp_path / "root" / "bin").mkdir(parents=True)
    (tmp_path / "root" / "data").mkdir()
    shutil.copy(peers.find("busybox"), tmp_path / "root" / "bin" / "sh")
    option = f"landlock=rx:/bin,rw:/data{AGE}"
    script = "echo x > /data/x && echo data; echo x > /bin/x || echo refused"
    done = mamushka(
        "run", "--rm", *ALONE, "--runtime", "container", "--security-opt", option,
        "--rootfs", str(tmp_path / "root"), "/bin/sh", "-c", script,
    )  # fmt: skip
    assert done.stdout.split() == [b"data", b"refused"], done.stderr


def test_in_python(engine: Engine) -> None:
    done = sdk.once("host", "sh", "-c", TRY, network="none", landlock=f"ro,rw:/opt{AGE}", engine=engine)
    assert done.stdout.split() == ["opt", "refused"]
    with pytest.raises(sdk.Invalid):
        sdk.once("host", "true", network="none", landlock="rwx", engine=engine)


def test_a_directory_as_root_in_python(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    shutil.copy(peers.find("busybox"), tmp_path / "bin" / "sh")
    with sdk.run(str(tmp_path), "/bin/sh", rootfs=True, network="none", landlock=f"ro{AGE}", engine=engine) as box:
        done = box.exec("/bin/sh", "-c", "echo x > /x || echo refused")
        assert done.stdout == "refused\n"
        box.files.write("/note", "kept")
        assert box.files.read_text("/note") == "kept"
    assert not (tmp_path / "note").exists()
