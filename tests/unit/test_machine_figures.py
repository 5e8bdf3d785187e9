"""Words of ``mamushka machine``, what a machine's end means, and figures as people and programs get them."""

from __future__ import annotations

import pytest

from mamushka.engine.bare import Disk
from mamushka.errors import GuestFault, Invalid, MamushkaError
from mamushka.interfaces.cli import machine, machine_figures
from mamushka.machine import statistics
from mamushka.machine.bare import Bare, check, ended, status
from mamushka.machine.control import failed
from mamushka.machine.machine import FAULT, OFF, REBOOT, STUCK, End
from mamushka.machine.statistics import MemoryUse, Sample


def test_disks_and_networks() -> None:
    assert machine.disk("/a b") == Disk("/a b", "raw", True)
    assert machine.disk("x.qcow2:ro,format=qcow2") == Disk("x.qcow2", "qcow2", False)
    for text in ("", ":ro", "a,format=vhd", "a,cache=none", "a,format"):
        with pytest.raises(Invalid):
            machine.disk(text)
    assert machine.net("none") == "" and machine.net("tap:tap0") == "tap0"
    for text in ("tap:", "bridge", "tap:" + "x" * 16, "tap:a/b", "none:x"):
        with pytest.raises(Invalid):
            machine.net(text)


def test_what_an_end_means() -> None:
    assert status(End(OFF, "debug exit", 0x2B)) == 0x2B
    assert status(End(OFF, "debug exit", 0x1FF)) == 0xFF
    assert status(End(OFF)) == status(End(OFF, "left")) == status(End(REBOOT)) == 0
    for end, said in ((End(REBOOT, "triple fault"), "triple"), (End(FAULT, "a lie"), "a lie")):
        with pytest.raises(GuestFault, match=said):
            status(end)
    with pytest.raises(MamushkaError, match="int3"):
        status(End(STUCK, "int3"))


def test_what_the_child_tells() -> None:
    packet = {"answer": {"kind": OFF, "cause": "", "status": 0, "lost": 3}}
    assert ended(packet) == (0, "3 bytes from the serial port were lost: nobody took them in time")
    with pytest.raises(Invalid, match="broken"):
        ended(failed(Invalid("broken")))
    with pytest.raises(MamushkaError, match="killed"):
        ended({})


def test_bounds() -> None:
    with pytest.raises(Invalid, match="1048576 bytes") as memory:
        check(Bare("/none", memory=1 << 20))
    with pytest.raises(Invalid, match="129 processors") as processors:
        check(Bare("/none", cpus=129))
    assert "2 MiB" in memory.value.hint and "1 to 128" in processors.value.hint


BEFORE = Sample(10.0, {"exits": 100, "io_exits": 50}, {"Write": 40}, MemoryUse(1, 2, 3))
AFTER = Sample(12.0, {"exits": 300, "io_exits": 250, "pf_fixed": 8}, {"Write": 60}, MemoryUse(1 << 20, 2 << 20, 3))


def test_a_sample_travels_as_a_document() -> None:
    for sample in (BEFORE, AFTER):
        assert statistics.sample(statistics.document(sample)) == sample


def test_figures_for_programs_and_people(capsys: pytest.CaptureFixture[str]) -> None:
    figures = statistics.rates(BEFORE, AFTER)
    found = machine_figures.document(figures)
    assert (found["Exits"], found["ExitsByClass"]["port"], found["UserShare"]) == (100.0, 100.0, 0.1)
    assert (found["GuestPrivate"], found["EmulatedShare"], found["PageFaultsFixed"]) == (1 << 20, None, 4.0)
    row = machine_figures.row(figures)
    assert row["Exits"] == "100" and row["UserShare"] == "10.00%" and row["Private"] == "1MiB"
    assert set(row) == set(machine_figures.row(None)) == set(machine_figures.COLUMNS)
    machine_figures.show(BEFORE, AFTER, "")
    text = capsys.readouterr().out
    assert "share to Python" in text and "emulated share" not in text
    machine_figures.show(BEFORE, AFTER, "json")
    assert '"Exits"' in capsys.readouterr().out
