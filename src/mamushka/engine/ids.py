"""Identifiers and the names that workloads get when nobody names them."""

from __future__ import annotations

import os

from mamushka.errors import Invalid

_MOODS = (  # one string instead of a list: less to read, less to unmarshal
    "amber bold brave bright brisk calm candid clever cosy crisp curious daring deft eager fair fond gentle glad "
    "happy hardy jolly keen kind lively loyal lucid lucky mellow merry mild modest neat noble nimble patient plucky "
    "proud quick quiet ready rosy serene sharp silent sincere spry steady sunny swift tidy vivid warm wise witty"
)
# Painters, carvers and makers: a mamushka is a turned and painted doll.
_MAKERS = (
    "anguissola aivazovsky bilibin bosch bruegel caravaggio cassatt chagall durer exter gentileschi giotto goncharova "
    "hiroshige hokusai kahlo kandinsky klee klimt kustodiev levitan leyster lissitzky malevich malyutin matisse monet "
    "morisot okeeffe peredvizhnik picasso popova repin rodin rublev serov shishkin stepanova tatlin titian utamaro "
    "vasnetsov vermeer vrubel vysheslavtsev zvyozdochkin"
)

_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_FURTHER = _FIRST | frozenset("_.-")
# The name becomes the host name (64 bytes), a DNS label (63) and part of paths; Docker sets no bound.
NAME_MAX = 255


def new_id() -> str:
    """64 hexadecimal digits that nobody else has."""
    return os.urandom(32).hex()


def random_name(attempt: int = 0) -> str:
    """A name one can remember; later attempts carry a number, since the first may be taken."""
    seed = int.from_bytes(os.urandom(4), "little")
    moods, makers = _MOODS.split(), _MAKERS.split()
    name = f"{moods[seed % len(moods)]}_{makers[seed // len(moods) % len(makers)]}"
    return name if not attempt else f"{name}{seed % 10**attempt}"


def check_name(name: str) -> str:
    """The name, without the leading slash that Docker's API allows; Invalid unless it is a good one."""
    bare = name.removeprefix("/")
    if len(bare) < 2 or len(bare) > NAME_MAX or bare[0] not in _FIRST or not _FURTHER.issuperset(bare):
        raise Invalid(
            f"invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
            hint=f"a name has 2 to {NAME_MAX} characters and begins with a letter or digit",
        )
    return bare


def is_hex(text: str) -> bool:
    """Whether it can be an id or the beginning of one."""
    return 0 < len(text) <= 64 and not text.strip("0123456789abcdef")
