"""The host's side of the guest protocol: what the machine's first process is asked and what it tells."""

from __future__ import annotations

from mamushka.machine.agent.agent import Agent, Ended
from mamushka.machine.agent.channel import Channel, SocketConnection

__all__ = ["Agent", "Channel", "Ended", "SocketConnection"]
