"""``doctor``: tries what a workload needs, for real, and says how to mend what this machine cannot do."""

from __future__ import annotations

import os
import sys

from mamushka import document
from mamushka.errors import MamushkaError, Unavailable
from mamushka.interfaces.cli.options import Command, flag
from mamushka.interfaces.cli.output import GREEN, RED, YELLOW, out, paint, printable
from mamushka.interfaces.cli.probes import PROBES
from mamushka.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.probes import Probe
    from mamushka.interfaces.cli.session import Session

# A probe takes milliseconds; one that hangs in the kernel shall not take the whole report with it.
_PATIENCE = 20.0
# A reason is a line; what a broken library writes beyond that is cut.
_ANSWER_MAX = 1 << 16
_MARKS = {"ok": ("✓", GREEN), "warning": ("!", YELLOW), "failed": ("✗", RED)}


@value
class Finding:
    """How one probe went."""

    name: str
    title: str
    status: str  # ok | warning | failed
    reason: str
    mend: str = ""


def doctor(arguments: Arguments, session: Session) -> int:
    """Every probe; 1 where something essential is missing."""
    findings = [examine(probe, session.data_root) for probe in _probes()]
    if arguments.json:
        from mamushka.values import asdict

        out(document.dump([asdict(finding) for finding in findings]).decode())
    else:
        for finding in findings:
            _print(finding)
    failed = [finding for finding in findings if finding.status == "failed"]
    if not arguments.json:
        out()
        out(f"{len(failed)} of {len(findings)} missing" if failed else "this machine can run workloads")
    return 1 if failed else 0


def _probes() -> Sequence[Probe]:
    """Root's, or an ordinary user's."""
    if os.geteuid() == 0:
        return PROBES
    from mamushka.interfaces.cli import probes_rootless

    return probes_rootless.PROBES


def _print(finding: Finding) -> None:
    mark, colour = _MARKS[finding.status]
    out(f"{paint(mark, colour, sys.stdout)} {finding.title}: {printable(finding.reason)}")
    if finding.mend:
        out(f"    mend: {finding.mend}")


def examine(probe: Probe, data_root: str) -> Finding:
    """Try it in a process of its own: what it makes ends with that process, also where the probe itself dies."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, _answer(probe, data_root))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        try:
            _wait(pid)
            answer = document.parse(pipe.read(_ANSWER_MAX), f"the answer of the probe {probe.name}")
        except MamushkaError as error:
            answer = {"works": False, "reason": str(error)}
    if answer["works"]:
        return Finding(probe.name, probe.title, "ok", answer["reason"])
    status = "failed" if probe.essential else "warning"
    return Finding(probe.name, probe.title, status, answer["reason"], answer.get("hint") or probe.mend)


def _wait(pid: int) -> None:
    """Until it has ended, or patience has."""
    import select

    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        late = not poll.poll(_PATIENCE * 1000)
        if late:
            os.kill(pid, 9)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
    if late:
        raise Unavailable(f"no answer within {_PATIENCE:.0f} s")
    if os.WIFSIGNALED(status):
        raise Unavailable(f"the probe was killed by signal {os.WTERMSIG(status)}")


def _answer(probe: Probe, data_root: str) -> bytes:
    try:
        answer = {"works": True, "reason": probe.attempt(data_root)}
    except MamushkaError as error:
        answer = {"works": False, "reason": str(error), "hint": error.hint}
    except (OSError, ImportError) as error:
        answer = {"works": False, "reason": str(error)}
    return document.dump(answer)[:_ANSWER_MAX]


COMMANDS = {
    "doctor": Command(
        doctor,
        "",
        (flag("--json", "Print what was found as JSON"),),
        maximum=0,
        notes="Ends with 1 where something is missing without which no workload runs.",
    )
}
