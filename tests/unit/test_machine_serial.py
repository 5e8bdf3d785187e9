"""The serial port and the power switch, asked as Linux's 8250 and ACPI drivers ask."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamushka.errors import Invalid
from mamushka.machine.devices import power
from mamushka.machine.devices.serial import DATA, FCR, IER, IIR, LCR, LSR, MCR, MSR, SCRATCH, Serial
from mamushka.machine.devices.sink import LIMIT
from mamushka.machine.loop import Loop
from tests.virtio import Line


@contextmanager
def port(
    sink: int | Callable[[bytes], object], source: int = -1, *, start: bool = True
) -> Iterator[tuple[Serial, Line]]:
    line, failures = Line(), list[BaseException]()
    loop = Loop("devices", failures.append)
    serial = Serial(line, loop, sink, source)
    if start:
        loop.start()
    try:
        yield serial, line
        assert not failures
    finally:
        loop.stop()
        serial.close()
        loop.close()
        line.close()


def until(check: Callable[[], object]) -> None:
    end = time.monotonic() + 5
    while not check():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def say(serial: Serial, text: bytes) -> None:
    for byte in text:
        assert serial.read(LSR, 1) & 0x20
        serial.write(DATA, 1, byte)


def test_what_the_guest_says_goes_to_a_function() -> None:
    said: list[bytes] = []
    with port(said.append) as (serial, _line):
        say(serial, b"Linux version 6.1")
        until(lambda: b"".join(said) == b"Linux version 6.1")


def test_what_the_guest_says_goes_to_a_pipe_and_to_a_file(tmp_path: object) -> None:
    reader, writer = os.pipe()
    with port(writer) as (serial, _line):
        say(serial, b"hello")
        assert os.read(reader, 100)
    with open(f"{tmp_path}/log", "wb") as log, port(log.fileno()) as (serial, _line):
        say(serial, b"hello")
        until(lambda: os.stat(log.fileno()).st_size == 5)
    os.close(reader)
    os.close(writer)


def test_a_guest_that_nobody_hears_is_not_held_up() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, bytes(4096))
        except BlockingIOError:
            break
    with port(writer) as (serial, _line):
        for _ in range(LIMIT + 100):
            serial.write(DATA, 1, 0x2E)
        assert serial.dropped == 100
        os.read(reader, 1 << 20)
        until(lambda: not len(serial._sink))
    os.close(reader)
    os.close(writer)


def test_a_reader_that_left_is_no_end() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with port(writer) as (serial, _line):
        serial.write(DATA, 1, 1)
        until(lambda: serial.dropped == 1)
        assert serial.read(LSR, 1) & 0x60 == 0x60
    os.close(writer)


def test_input_flows_as_the_guest_takes_it() -> None:
    reader, writer = os.pipe()
    os.write(writer, bytes(range(100)))
    with port(lambda data: None, reader) as (serial, line):
        serial.write(IER, 1, 1)
        taken = []
        while len(taken) < 100:
            until(lambda: serial.read(LSR, 1) & 1)
            assert serial.read(IIR, 1) & 0xF == 4
            assert len(serial._incoming) <= 16
            while serial.read(LSR, 1) & 1:
                taken.append(serial.read(DATA, 1))
        assert taken == list(range(100))
        assert line.fired >= 7
        os.close(writer)
        until(lambda: serial._source == -1)
        assert serial.read(DATA, 1) == 0
    os.close(reader)


def test_nothing_at_all_is_a_source() -> None:
    source = os.open("/dev/null", os.O_RDONLY)
    with port(lambda data: None, source) as (serial, _line):
        until(lambda: serial._source == -1)
    os.close(source)


def test_interrupts_of_the_transmitter() -> None:
    with port(lambda data: None) as (serial, line):
        serial.write(DATA, 1, 1)
        assert line.fired == 0
        serial.write(IER, 1, 2)
        assert line.fired == 1, "empty when it is asked for: serial8250 starts so"
        assert serial.read(IIR, 1) == 2
        assert serial.read(IIR, 1) == 1, "looked at"
        serial.write(DATA, 1, 1)
        assert line.fired == 2
        serial.write(FCR, 1, 1)
        assert serial.read(IIR, 1) == 0xC2
        assert serial.read(IIR, 1) == 0xC1


def test_linux_finds_a_16550a() -> None:
    """autoconfig() of drivers/tty/serial/8250/8250_port.c, step by step."""
    with port(lambda data: None) as (serial, _line):
        serial.write(IER, 1, 0)
        assert serial.read(IER, 1) & 0xF == 0
        serial.write(IER, 1, 0xF)
        assert serial.read(IER, 1) == 0xF
        serial.write(IER, 1, 0x40)
        assert serial.read(IER, 1) & 0x40 == 0, "an XScale has this bit"
        serial.write(MCR, 1, 0x10 | 0x0A)
        assert serial.read(MSR, 1) & 0xF0 == 0x90
        serial.write(DATA, 1, 0x55)
        assert serial.read(LSR, 1) & 1
        assert serial.read(DATA, 1) == 0x55
        serial.write(MCR, 1, 8)
        assert serial.read(MSR, 1) & 0xF0 == 0xB0
        serial.write(LCR, 1, 0xBF)
        serial.write(FCR, 1, 1)
        assert serial.read(IIR, 1) >> 6 == 3
        serial.write(LCR, 1, 0x80)
        serial.write(FCR, 1, 0x21)
        assert serial.read(IIR, 1) & 0xE0 == 0xC0, "a 16750 has bit 5"
        serial.write(DATA, 1, 1)
        serial.write(IER, 1, 2)
        assert (serial.read(DATA, 1), serial.read(IER, 1)) == (1, 2)
        serial.write(LCR, 1, 3)
        serial.write(SCRATCH, 1, 0xAE)
        assert (serial.read(SCRATCH, 1), serial.read(LCR, 1), serial.read(IER, 1)) == (0xAE, 3, 0)


def test_a_saved_port_goes_on_elsewhere() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"key")
    with port(lambda data: None, reader) as (first, _line), port(lambda data: None) as (second, line):
        until(lambda: len(first._incoming) == 3)
        for register, value in ((LCR, 3), (FCR, 1), (MCR, 11), (SCRATCH, 7), (IER, 3)):
            first.write(register, 1, value)
        second.restore(first.save())
        assert [second.read(register, 1) for register in (LCR, MCR, SCRATCH, IER)] == [3, 11, 7, 3]
        assert second.read(IIR, 1) == 0xC4
        assert bytes(second.read(DATA, 1) for _ in range(3)) == b"key"
        assert second.read(IIR, 1) == 0xC2
        assert line.fired == 0, "it was told before"
        second.write(DATA, 1, 1)
        assert line.fired == 1
        with pytest.raises(Invalid):
            second.restore({"registers": b"\2", "incoming": b""})
    os.close(reader)
    os.close(writer)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.sampled_from((1, 2, 4)), st.integers(0, 2**32 - 1))))
def test_any_accesses(accesses: list[tuple[bool, int, int, int]]) -> None:
    with port(lambda data: None, start=False) as (serial, line):
        for write, offset, size, value in accesses:
            if write:
                serial.write(offset, size, value)
            else:
                assert 0 <= serial.read(offset, size) < 256
        assert len(serial._incoming) <= 16
        assert line.fired <= len(accesses)


def test_how_a_guest_ends() -> None:
    ended: list[bool] = []
    device = power.Power(ended.append)
    device.write(power.SLEEP_CONTROL, 1, 5 << 2)  # not enabled
    device.write(power.SLEEP_CONTROL, 1, 0x20 | 3 << 2)  # another sleep
    device.write(power.RESET, 1, 0)
    device.write(power.SLEEP_STATUS, 1, 0x80)
    assert ended == []
    assert device.read(power.SLEEP_STATUS, 1) == 0
    device.write(power.SLEEP_CONTROL, 1, 0x20 | 5 << 2)
    device.write(power.RESET, 1, power.RESET_VALUE)
    assert ended == [False, True]
