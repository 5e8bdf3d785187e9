"""The command line: Docker's verbs, flags, output and exit codes over the engine, in one process."""

from mamushka.interfaces.cli.program import main

__all__ = ["main"]
