"""``login`` and ``logout``: credentials kept where Docker keeps them, after the registry has agreed to them."""

from __future__ import annotations

import os
import sys

from mamushka.errors import Invalid, NotFound
from mamushka.interfaces.cli.options import Command, flag, one
from mamushka.interfaces.cli.output import out, talk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.cli.options import Arguments
    from mamushka.interfaces.cli.session import Session

_HUB = "docker.io"
# Tokens are a few KiB; what is longer was not meant for a password.
_PASSWORD_MAX = 1 << 16


def login(arguments: Arguments, session: Session) -> int:
    """Ask the registry first: a password that it refuses is not kept."""
    from mamushka.image import auth
    from mamushka.image.remote import Remotes

    registry = _registry(arguments)
    credentials = auth.Credentials(*_name_and_password(arguments))
    remotes = Remotes(os.environ)
    if not remotes.config_path:
        raise Invalid("there is no place to keep credentials", hint="set HOME or DOCKER_CONFIG")
    try:
        remotes.login(registry, credentials)
    finally:
        remotes.close()
    place = auth.store(remotes.config_path, registry, credentials)
    if place == remotes.config_path:
        talk(f"WARNING! The password is kept unencrypted in {place}.")
    out("Login Succeeded")
    return 0


def logout(arguments: Arguments, session: Session) -> int:
    """Forget a registry's credentials; there being none is no failure."""
    from mamushka.image import auth

    registry = _registry(arguments)
    path = auth.config_path(os.environ)
    try:
        auth.erase(path, registry)
    except NotFound:
        out(f"Not logged in to {registry}")
    else:
        out(f"Removing login credentials for {registry}")
    return 0


def _registry(arguments: Arguments) -> str:
    """A host, also where an address with a scheme and a path was given."""
    given = str(arguments.operands[0]) if arguments.operands else _HUB
    host = given.partition("://")[2] or given
    host = host.partition("/")[0]
    return _HUB if host in ("index.docker.io", "registry-1.docker.io", "") else host


def _name_and_password(arguments: Arguments) -> tuple[str, str]:
    name, password = arguments.username, arguments.password
    if arguments.password_stdin:
        if password:
            raise Invalid("--password and --password-stdin contradict each other")
        if not name:
            raise Invalid("--password-stdin needs --username")
        password = sys.stdin.read(_PASSWORD_MAX).rstrip("\r\n")
    elif password:
        talk("WARNING! A password on the command line can be seen by others; --password-stdin hides it.")
    if not (name and password) and not sys.stdin.isatty():
        raise Invalid("a name and a password are needed", hint="--username NAME --password-stdin")
    if not name:
        talk("Username:")
        name = sys.stdin.readline().strip()
    if not password:
        from getpass import getpass

        password = getpass("Password: ")
    if not name or not password:
        raise Invalid("a name and a password are needed")
    return name, password


COMMANDS = {
    "login": Command(
        login,
        "[REGISTRY]",
        (
            one("-p, --password", "The password or token; seen by others, see --password-stdin", "password"),
            flag("--password-stdin", "Read the password from standard input"),
            one("-u, --username", "The name", "name"),
        ),
        maximum=1,
    ),
    "logout": Command(logout, "[REGISTRY]", maximum=1),
}
