"""The vhost-user protocol: messages as QEMU's document has them, and whatever a back end answers."""

from __future__ import annotations

import _socket
import os
import struct
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Invalid, Unavailable, Unsupported
from mamushka.machine import vhost_user
from mamushka.machine.devices.virtio.frontend import Calls, Frontend, shared_memory
from mamushka.machine.devices.virtio.queue import Queue, Unused
from mamushka.machine.loop import Loop
from mamushka.machine.memory import Memory, Region, shared_region
from mamushka.machine.vhost_user import Message, Ring, Shared


def test_a_header_is_request_flags_and_size() -> None:
    data = vhost_user.encode(vhost_user.statement(vhost_user.SET_FEATURES, 1 << 32), acknowledge=True)
    assert data == struct.pack("<IIIQ", 2, 9, 8, 1 << 32)
    assert vhost_user.encode(vhost_user.question(vhost_user.GET_FEATURES), acknowledge=True)[4:8] == b"\1\0\0\0"


def test_memory_is_told_by_guest_addresses_alone() -> None:
    message = vhost_user.memory_table([Shared(0, 0x1000, 0, 7), Shared(1 << 32, 0x2000, 0x1000, 8)])
    assert message.fds == (7, 8)
    assert struct.unpack("<II8Q", message.payload) == (2, 0, 0, 0x1000, 0, 0, 1 << 32, 0x2000, 1 << 32, 0x1000)


@pytest.mark.parametrize("count", [0, 9])
def test_memory_has_one_to_eight_parts(count: int) -> None:
    with pytest.raises(Invalid, match=f"{count} parts"):
        vhost_user.memory_table([Shared(0, 0x1000, 0, 7)] * count)


def test_a_ring_is_kicked_off_after_all_is_said() -> None:
    messages = vhost_user.ring_messages(Ring(1, 64, 0x1000, 0x2000, 0x3000, 5, kick=10, call=11))
    assert [message.request for message in messages] == [8, 10, 9, 13, 12, 18]
    assert messages[2].payload == struct.pack("<IIQQQQ", 1, 0, 0x1000, 0x3000, 0x2000, 0)
    assert messages[3].fds + messages[4].fds == (11, 10)


def test_features_that_the_back_end_lacks() -> None:
    assert vhost_user.agree(1 << 32 | 1 << 30, 1 << 32) == 1 << 32 | 1 << 30
    with pytest.raises(Invalid, match="0x20000000"):
        vhost_user.agree(1 << 32, 1 << 32 | 1 << 29)


@given(st.binary(max_size=32), st.sampled_from([vhost_user.question(1), Message(5), vhost_user.stop_ring(1)]))
def test_any_answer_is_parsed_or_raises(data: bytes, message: Message) -> None:
    try:
        vhost_user.check_header(data[:12], message)
        assert struct.unpack("<III", data[:12])[::2] == (message.request, message.answer or 8)
    except Invalid:
        pass
    for parse in (vhost_user.number, lambda item: vhost_user.ring_base(item, 1)):
        try:
            assert parse(data[12:]) >= 0
        except Invalid:
            pass
    try:
        vhost_user.check_success(data[12:], message)
        assert data[12:] == bytes(8)
    except Invalid:
        pass


def serve(answer: Callable[[_socket.socket], None]) -> tuple[_socket.socket, threading.Thread]:
    """A back end in a thread; our end of the connection to it."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    thread = threading.Thread(target=lambda: (answer(theirs), theirs.close()))
    thread.start()
    return ours, thread


@given(st.binary(max_size=200))
def test_a_back_end_that_babbles_is_unavailable(data: bytes) -> None:
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    theirs.send(data)
    theirs.shutdown(_socket.SHUT_WR)
    try:
        Frontend(ours, "the double")
    except Unavailable as error:
        assert "the double" in str(error)
    else:
        assert data[:12] == struct.pack("<III", 1, data[4], 8)
    finally:
        ours.close()
        theirs.close()


def test_private_memory_is_not_shared() -> None:
    memory = Memory((shared_region(0, 1 << 16), Region(1 << 20, 1 << 16, name="high")))
    with pytest.raises(Unsupported, match="memory high at 0x100000 is private"):
        shared_memory(memory)
    memory.close()


def test_images_are_not_shared() -> None:
    memory = Memory((shared_region(0, 1 << 16), Region(1 << 20, 1 << 16, writable=False, kind="pmem")))
    assert [part.start for part in shared_memory(memory)] == [0]
    memory.close()


class PlainLine:
    """An interrupt of an executor that has no eventfd for it."""

    fd = -1
    fired = 0

    def fire(self) -> None:
        self.fired += 1


def test_a_line_without_an_eventfd_is_fired_by_the_loop() -> None:
    loop, line = Loop("test", lambda error: None), PlainLine()
    calls = Calls(loop)
    loop.start()
    os.eventfd_write(calls.of(line), 1)
    for _ in range(1000):
        if loop.call(lambda: line.fired):
            break
    loop.call(calls.close)
    loop.stop()
    loop.close()
    assert line.fired == 1


def test_rings_are_handed_over_and_come_back() -> None:
    """A back end of a few lines: answers each question, acknowledges all else, stops rings at entry 3."""
    seen: list[int] = []

    def back_end(socket: _socket.socket) -> None:
        while header := socket.recv(12):
            request, flags, size = struct.unpack("<III", header)
            payload, *_ = socket.recvmsg(size, 64) if size else (b"",)
            seen.append(request)
            if request in (1, 15):
                reply = struct.pack("<Q", {1: 1 << 32 | 1 << 30, 15: 0xFF}[request])
            elif request == 11:
                reply = struct.pack("<II", struct.unpack("<II", payload)[0], 3)
            elif flags & 8:
                reply = bytes(8)
            else:
                continue
            socket.send(struct.pack("<III", request, 5, len(reply)) + reply)

    ours, thread = serve(back_end)
    memory, loop = Memory((shared_region(0, 1 << 16),)), Loop("test", lambda error: None)
    line, kick = PlainLine(), os.eventfd(0)
    first, third = (Queue(memory, 16, base, base + 0x400, base + 0x800, 0, line) for base in (0x1000, 0x3000))
    first.bell = third.bell = kick
    queues = [first, Unused(line), third]
    frontend, calls = Frontend(ours, "the double"), Calls(loop)
    frontend.start(shared_memory(memory), 1 << 32, queues, calls)
    assert seen == [1, 3, 15, 16, 2, 5, *[8, 10, 9, 13, 12, 18] * 2]
    memory.write(0x3800 + 2, b"\x02\x00")
    assert [queue.carried for queue in queues] == [True, False, True]
    frontend.stop(queues)
    assert [queue.save() for queue in queues] == [(3, 0), (0, 0), (3, 2)]
    frontend.close()
    thread.join()
    calls.close()
    loop.close()
    os.close(kick)
