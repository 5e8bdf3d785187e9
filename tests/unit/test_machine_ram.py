"""The file that is a machine's RAM: with large pages where they can be had, and else with small ones."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from mamushka.linux import tmpfs
from mamushka.linux.memory import memfd
from mamushka.machine import memory
from mamushka.machine.board import ram
from mamushka.machine.memory import Region, ram_file

SIZE = 64 << 20
LARGE = 2 << 20
_SETTING = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"


@pytest.fixture
def large() -> Iterator[int]:
    try:
        fd = tmpfs.large(SIZE)
    except OSError as error:
        pytest.skip(f"no file system of our own: {error}")
    yield fd
    os.close(fd)


def test_it_is_zeros_of_its_size_and_has_no_name(large: int) -> None:
    assert os.fstat(large).st_size == SIZE and os.fstat(large).st_nlink == 0
    assert os.pread(large, 16, SIZE - 8) == bytes(8)
    assert not os.get_inheritable(large)


def test_a_byte_brings_a_large_page(large: int) -> None:
    with open(_SETTING) as file:
        if "[deny]" in file.read():
            pytest.skip("this host has no large pages for files of memory")
    with mmap.mmap(large, SIZE) as view:
        for start in range(0, SIZE, LARGE):
            view[start + 5000] = 1
    # Where memory is in pieces the kernel takes small ones, for some or all: then there are fewer than a half.
    assert os.fstat(large).st_blocks * 512 > SIZE // 2


def test_it_can_be_as_large_as_memory(large: int) -> None:
    """A file system's usual limit is half of that: a guest beyond it would end with SIGBUS."""
    found = os.statvfs(f"/proc/self/fd/{large}")
    assert found.f_blocks == 0  # no limit: tmpfs(5)


def test_it_lies_where_large_pages_can_be_mapped(large: int) -> None:
    region = Region(0, SIZE, fd=os.dup(large), shared=True)
    assert region.hva % LARGE == 0
    region.close()


def test_without_it_memory_has_small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(length: int) -> int:
        raise PermissionError(errno.EPERM, "fsopen")

    monkeypatch.setattr(memory.tmpfs, "large", refused)
    fd = ram_file(SIZE)
    assert os.fstat(fd).st_size == SIZE and "memfd:mamushka-ram" in os.readlink(f"/proc/self/fd/{fd}")
    os.close(fd)


def test_boards_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(length: int) -> int:
        made.append(length)
        return memfd("counted", length)

    monkeypatch.setattr(memory.tmpfs, "large", counted)
    ram(SIZE).close()
    assert made == [SIZE]
