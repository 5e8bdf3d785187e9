"""``audit``: what a workload with these options could reach, tried and scored."""

from __future__ import annotations

import os
import sys

from mamushka import document
from mamushka.errors import Invalid
from mamushka.interfaces.cli.options import Command, flag, many
from mamushka.interfaces.cli.output import BOLD, DIM, out, paint, printable, talk
from mamushka.interfaces.cli.workload_options import CREATE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.audit import Finding, Report
    from mamushka.engine.settings import Settings
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session

EXCEEDED = 1
# Of create's options those that say how it is started, named and ended; the probe is, in its own way.
_OTHERS = frozenset(
    (
        "attach", "interactive", "tty", "name", "label", "label_file", "annotation", "cidfile", "workdir", "entrypoint",
        "publish", "publish_all", "expose", "restart", "rm", "init", "stop_signal", "stop_timeout", "health_cmd",
        "health_interval", "health_timeout", "health_start_period", "health_retries", "no_healthcheck", "log_driver",
        "log_opt", "gpus", "link",
    )
)  # fmt: skip
_OFFERED = tuple(option for option in CREATE if option.attribute not in _OTHERS)
_WIDTH = 12


def audit(arguments: Arguments, session: Session) -> int:
    """Each wall that was asked for, or that can be had; 1 where a score is above what ``--max`` allows."""
    from mamushka.engine.audit import audit as examine
    from mamushka.engine.audit import runtimes
    from mamushka.interfaces.cli.run import create_pulled

    wanted = _wanted(arguments, session)
    known = {} if "runtime" in arguments.given else runtimes()
    others = {name: why for name, why in known.items() if why}
    chosen: list[tuple[str, ...]] = [(name,) for name, why in known.items() if not why] or [wanted.runtime]
    reports = [
        examine(
            session.engine,
            _behind(wanted, walls),
            environment=os.environ,
            create=lambda asked: create_pulled(asked, arguments, session),
        )
        for walls in chosen
    ]
    if arguments.json:
        told = [{"runtime": name, "reason": why} for name, why in others.items()]
        out(document.dump({"reports": [report.document() for report in reports], "others": told}).decode())
    else:
        for report in reports:
            _print(report)
        for name, why in others.items():
            out(f"{name}: not audited: {why}")
    above = [text for report in reports for text in _above(report, dict(arguments.max))]
    for text in above:
        talk(text)
    return EXCEEDED if above else 0


def _behind(wanted: Settings, walls: tuple[str, ...]) -> Settings:
    from mamushka.values import replace

    return replace(wanted, runtime=walls)


def _wanted(arguments: Arguments, session: Session) -> Settings:
    from mamushka.interfaces.cli.run import volumes_from
    from mamushka.interfaces.cli.settings import settings

    for option in CREATE:
        arguments.__dict__.setdefault(option.attribute, option.default)
    arguments.__dict__["operands"] = arguments.operands or ("host",)
    return settings(arguments, volumes_from(arguments.volumes_from, session) if arguments.volumes_from else ())


def _limit(text: str) -> tuple[str, int]:
    """SCORE for every axis, or AXIS=SCORE."""
    from mamushka.engine.audit import AXES

    axis, _, number = text.rpartition("=")
    if (axis and axis not in AXES) or not number.isdecimal() or int(number) > 100:
        raise Invalid("neither SCORE nor AXIS=SCORE, of 0 to 100", hint=f"the axes are {', '.join(AXES)}")
    return axis, int(number)


def _above(report: Report, allowed: dict[str, int]) -> list[str]:
    """What is too much; the empty name allows every axis that is not named."""
    found = []
    for axis, score in report.axes.items():
        most = allowed.get(axis, allowed.get("", 100))
        if score > most:
            found.append(f"{report.runtime}: {axis} has {score}, and --max allows {most}")
    return found


def _print(report: Report) -> None:
    out(f"{report.runtime}, image {printable(report.image)}: {report.score} of 100 (0: reached nothing)")
    for axis, score in report.axes.items():
        out()
        out(f"{paint(axis.ljust(_WIDTH), BOLD, sys.stdout)}{score:>4}")
        for item in report.reached:
            if item.axis == axis:
                _print_finding(item)
    out()


def _print_finding(item: Finding) -> None:
    out(f"    +{item.weight:<4}{item.title}: {printable(item.seen)}")
    out(f"         {paint(item.why, DIM, sys.stdout)}")
    out(f"         closed by: {item.close}")


COMMANDS = {
    "audit": Command(
        audit,
        "[IMAGE]",
        (
            flag("--json", "Print what was tried and found as JSON"),
            many("--max", "End with 1 where an axis has more: SCORE, or AXIS=SCORE", "score", convert=_limit),
            *_OFFERED,
        ),
        maximum=1,
        failure=125,
        complete="image",
        notes="It takes the options of run that make the wall, so that your own can be tried. Each axis has 0, nothing "
        "was reached, to 100. Without --runtime every wall that works here is tried. The default image is host.",
    )
}
