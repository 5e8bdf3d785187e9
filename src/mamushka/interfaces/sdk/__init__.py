"""The Python API: boxes to run programs in, their files, streams and verdicts.

Synchronous here; ``mamushka.aio`` has the same names for asyncio. Whatever a program inside does, a failing exit
included, is a result. That a wall could not be built, an image not be had, is an exception (mamushka.errors).
"""

from __future__ import annotations

from mamushka.engine.settings import Mount
from mamushka.interfaces.sdk import aio
from mamushka.interfaces.sdk.auditing import audit
from mamushka.interfaces.sdk.box import Box, boxes, get, once, run
from mamushka.interfaces.sdk.files import Files, Stat
from mamushka.interfaces.sdk.host import images, pull
from mamushka.interfaces.sdk.process import Process
from mamushka.interfaces.sdk.result import Completed, Failed, Runtime, Verdict
from mamushka.interfaces.sdk.snapshot import Snapshot

__all__ = [
    "Box", "Completed", "Failed", "Files", "Mount", "Process", "Runtime", "Snapshot", "Stat", "Verdict", "aio", "audit",
    "boxes", "get", "images", "once", "pull", "run",
]  # fmt: skip
