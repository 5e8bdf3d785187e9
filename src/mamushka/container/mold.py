"""A script that is written once and performed often: for whoever starts containers from one bundle again and again.

Writing a script is a sixth of a start. Most of it follows from the bundle; what does not are descriptors, names that
hold the container's id, and what operations say that they hang on besides (``Inside.hangs_on``). Where all but
descriptors and names is as it was, the calls are too. An operation takes part only if it says so (``settled``).

A process that starts one container never comes here: the second start from a bundle casts the mold.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.container.plan import Interior
    from mamushka.linux.script import Script
    from mamushka.spec.runtime import Config

# Bundles whose scripts are kept, the latest; each has some forty KiB.
_KEPT_MAX = 8


class Mold:
    """A script, of what bundle it is, on what it hangs, and the order in which it has the interior's descriptors."""

    __slots__ = ("config", "key", "order", "script")

    def __init__(self, config: Config, key: object, script: Script, order: list[int]) -> None:
        self.config, self.key, self.script, self.order = config, key, script, order


_molds: list[Mold] = []


def script(interior: Interior, channel: int, gate: int, outcome: int) -> Script:
    """What ``interior.script`` gives, from a mold if there is one."""
    if not all(operation.settled for operation in interior.operations):
        return interior.script(channel, gate, outcome)
    descriptors = [*interior.descriptors(), channel, gate, outcome]
    names = [name for operation in interior.operations for name in operation.names()]
    key = _key(interior, descriptors, names)
    for mold in _molds:
        if mold.config is interior.config and mold.key == key:
            return mold.script.again([descriptors[place] for place in mold.order], names)
    written = interior.script(channel, gate, outcome)
    if {*written.descriptors} <= {*descriptors}:
        order = [descriptors.index(descriptor) for descriptor in written.descriptors]
        # A copy: to the first one's descriptors its executable will be added.
        _molds[:] = [Mold(interior.config, key, written, order), *_molds[: _KEPT_MAX - 1]]
    return written


def _key(interior: Interior, descriptors: list[int], names: list[bytes]) -> object:
    # A descriptor that serves twice stands for its first place; it must do so again.
    pattern = tuple([descriptors.index(descriptor) for descriptor in descriptors])
    hangs_on = tuple([operation.hangs_on() for operation in interior.operations])
    return interior.bundle.path, interior.gated, interior.no_pivot, pattern, hangs_on, tuple(map(len, names))
