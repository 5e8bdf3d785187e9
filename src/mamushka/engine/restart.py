"""Whether and when a workload that ended runs again. Pure; the shim asks."""

from __future__ import annotations

from mamushka.engine.settings import Restart
from mamushka.errors import Invalid
from mamushka.runtime import Exit

# Docker's: 100 ms, doubled each time up to a minute, and from the start again after 10 s of running.
DELAY_MIN = 0.1
DELAY_MAX = 60.0
GOOD_RUN = 10.0

POLICIES = ("no", "on-failure", "always", "unless-stopped")


def check(restart: Restart) -> None:
    """Invalid unless it is one of the four policies, with retries only where they mean something."""
    if restart.policy not in POLICIES:
        raise Invalid(f"invalid restart policy {restart.policy!r}", hint=f"one of {', '.join(POLICIES)}")
    if restart.retries and restart.policy != "on-failure":
        raise Invalid(f"the restart policy {restart.policy} takes no number of retries", hint="on-failure:N does")
    if restart.retries < 0:
        raise Invalid(f"{restart.retries} restart retries")


def again(restart: Restart, exit: Exit, restarts: int) -> bool:
    """Whether it runs again after this end, having been restarted ``restarts`` times."""
    if restart.policy == "on-failure":
        return exit.status != 0 and (restart.retries == 0 or restarts < restart.retries)
    return restart.policy in ("always", "unless-stopped")


def delay(previous: float, ran: float) -> float:
    """Seconds until it runs again, after a run of ``ran`` seconds that a wait of ``previous`` came before."""
    return DELAY_MIN if ran >= GOOD_RUN or previous <= 0 else min(previous * 2, DELAY_MAX)
