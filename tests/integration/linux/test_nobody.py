"""Namespaces with nobody in them, made by several threads at one moment, and by one that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.root

# Both have made their pipes when either forks, so each child holds the other's ends open.
TOGETHER = """
import os, threading
from mamushka.linux.nobody import made
from mamushka.linux.process import CLONE_NEWNET, unshare

meet = threading.Barrier(2)
os.register_at_fork(before=lambda: meet.wait(10))
made_of = []

def make():
    made_of.append(made("net", lambda: unshare(CLONE_NEWNET)))

threads = [threading.Thread(target=make) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
own = os.stat("/proc/self/ns/net").st_ino
print(len({own, *(os.fstat(fd).st_ino for fd in made_of)}))
"""

# Both children wait, and say who they are.
KILLED = """
import os, threading, time
from mamushka.linux.nobody import made
from mamushka.linux.process import CLONE_NEWUSER, unshare

meet = threading.Barrier(2)
os.register_at_fork(before=lambda: meet.wait(10))

def known(pid):
    os.write(1, b"%d\\n" % pid)
    time.sleep(600)

for _ in range(2):
    threading.Thread(target=made, args=("user", lambda: unshare(CLONE_NEWUSER), known)).start()
"""


def test_two_threads_do_not_wait_for_each_others_children() -> None:
    done = subprocess.run([sys.executable, "-c", TOGETHER], capture_output=True, text=True, timeout=30)
    assert done.stdout == "3\n", done.stderr


def test_who_is_killed_leaves_no_child_behind() -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        children = [int(killed.stdout.readline()) for _ in range(2)]
        killed.send_signal(signal.SIGKILL)
    end = time.monotonic() + 5
    while any(_runs(pid) for pid in children) and time.monotonic() < end:
        time.sleep(0.01)
    left = [pid for pid in children if _runs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
