"""The storm: callers that create, start, enter, ask and delete, while their commands are killed at random moments.

What must hold is little and strict. No command waits for another for ever: each has a deadline. Whatever moment a
command was killed at, ``delete --force`` then takes everything away, and may itself be killed and repeated. In the end
there is no container, no cgroup and no process.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections import deque
from typing import Any

# A command that takes longer waits for something that does not come. Generous: eight callers share few cores.
DEADLINE = 120.0
# The share of commands that are killed, and the seconds within which that happens: any moment of a command's.
KILLED, WITHIN = 0.1, 0.12


class Storm:
    """One storm. ``counts`` and ``times`` tell afterwards what happened."""

    def __init__(self, program: str, base: str, *, containers: int, alive: int, callers: int, seed: int) -> None:
        self.command = [program, "--root", f"{base}/state"]
        self.base, self.containers, self.alive, self.callers, self.seed = base, containers, alive, callers, seed
        self.parent = f"mamushka-storm-{os.getpid()}"
        self.token = f"{86400 + os.getpid()}.{seed % 1000 + 1}"  # the seconds that every container sleeps: its mark
        self.lock = threading.Lock()
        self.numbers = iter(range(containers))
        self.living: deque[str] = deque()
        self.counts = dict.fromkeys(("created", "executed", "killed", "refused"), 0)
        self.most = 0
        self.times: dict[str, list[float]] = {}
        self.errors: list[str] = []

    def run(self) -> float:
        """Until every container was there and is gone; the seconds it took."""
        begun = time.monotonic()
        threads = [threading.Thread(target=self._call, args=(self.seed + number,)) for number in range(self.callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while self.living:
            self._delete(self.living.popleft(), random.Random(self.seed))
        return time.monotonic() - begun

    def left(self, patience: float = 10.0) -> list[str]:
        """What is left, once the host's first process has reaped what has ended: records, cgroups, processes."""
        deadline = time.monotonic() + patience
        while (found := self._left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def _left(self) -> list[str]:
        found = [f"record {name}" for name in os.listdir(f"{self.base}/state")] if self._has_state() else []
        for hierarchy in os.listdir("/sys/fs/cgroup"):
            for directory, _, _ in os.walk(f"/sys/fs/cgroup/{hierarchy}/{self.parent}"):
                if os.path.basename(directory) != self.parent:
                    found.append(f"cgroup {directory}")
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (self._of(entry, "cmdline", self.token) or self._of(entry, "cgroup", self.parent)):
                found.append(f"process {entry}")
        return found

    def clean(self) -> None:
        """Take the directories away that held the cgroups."""
        for hierarchy in os.listdir("/sys/fs/cgroup"):
            try:
                os.rmdir(f"/sys/fs/cgroup/{hierarchy}/{self.parent}")
            except OSError:
                continue

    def _has_state(self) -> bool:
        return os.path.isdir(f"{self.base}/state")

    @staticmethod
    def _of(pid: str, file: str, text: str) -> bool:
        try:
            with open(f"/proc/{pid}/{file}", "rb") as reading:
                return text.encode() in reading.read()
        except OSError:
            return False

    # A caller

    def _call(self, seed: int) -> None:
        dice = random.Random(seed)
        try:
            while True:
                with self.lock:
                    number = next(self.numbers, None)
                if number is None:
                    return
                self._one(f"storm-{number}", dice)
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")

    def _one(self, id: str, dice: random.Random) -> None:
        bundle = self._bundle(id)
        created = self._perform(dice, "create", "--bundle", bundle, id)
        started = created and self._perform(dice, "start", id)
        if started:
            with self.lock:
                self.counts["created"] += 1
                self.living.append(id)
                self.most = max(self.most, len(self.living))
                oldest = self.living.popleft() if len(self.living) > self.alive else ""
            self._visit(id, dice)
            if oldest:
                self._delete(oldest, dice)
        else:
            self._delete(id, dice)
        os.unlink(f"{bundle}/config.json")
        os.rmdir(bundle)

    def _visit(self, id: str, dice: random.Random) -> None:
        """What callers do with a container; it may be gone by then, since others delete."""
        deed = dice.randrange(5)
        if deed == 0 and self._perform(dice, "exec", id, "/bin/true", may_fail=True):
            self.counts["executed"] += 1
        elif deed == 1:
            self._perform(dice, "state", id, may_fail=True)
        elif deed == 2:
            self._perform(dice, "list", may_fail=True)
        elif deed == 3:
            self._perform(dice, "kill", id, "KILL", may_fail=True)

    def _delete(self, id: str, dice: random.Random) -> None:
        for _ in range(5):
            if self._perform(dice, "delete", "--force", id):
                return
        if not self._perform(None, "delete", "--force", id):
            self.errors.append(f"{id} cannot be deleted")

    def _bundle(self, id: str) -> str:
        import json

        path = f"{self.base}/bundles/{id}"
        os.makedirs(path)
        namespaces = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]
        config: dict[str, Any] = {
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "args": ["/bin/sleep", self.token], "user": {"uid": 0, "gid": 0}},
            "root": {"path": f"{self.base}/rootfs", "readonly": True},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                       {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}],
            "linux": {"namespaces": namespaces, "cgroupsPath": f"/{self.parent}/{id}",
                      "resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 20}}},
        }  # fmt: skip
        config["process"]["capabilities"] = {"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": []}
        with open(f"{path}/config.json", "w") as file:
            json.dump(config, file)
        return path

    def _perform(self, dice: random.Random | None, *words: str, may_fail: bool = False) -> bool:
        """One command, perhaps killed half-way; whether it succeeded."""
        null = subprocess.DEVNULL
        begun = time.monotonic()
        process = subprocess.Popen([*self.command, *words], stdin=null, stdout=null, stderr=null, close_fds=True)
        if dice and dice.random() < KILLED:
            try:
                process.wait(dice.uniform(0, WITHIN))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                with self.lock:
                    self.counts["killed"] += 1
                return False
        try:
            code = process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.errors.append(f"{' '.join(words)} took longer than {DEADLINE:.0f} s")
            return False
        with self.lock:
            self.times.setdefault(words[0], []).append(time.monotonic() - begun)
            if code and not may_fail:
                self.counts["refused"] += 1
        return code == 0


def percentile(times: list[float], share: float) -> float:
    """The time within which this share of them stays."""
    return sorted(times)[min(len(times) - 1, int(len(times) * share))] if times else 0.0
