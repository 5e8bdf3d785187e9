"""A directory as a root instead of an image (``--rootfs``): whatever lies in it is the lowest layer.

It is never written to: like an image's, it lies below the workload's own writable top. What its owner changes in it
meanwhile is seen or not, as with every lower directory of overlayfs.
"""

from __future__ import annotations

import os

from mamushka.errors import Invalid, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.engine.images import ImageSummary

_PREFIX = "rootfs:"  # of an image's id, which otherwise is a digest or "host"


def image(path: str) -> ImageSummary:
    """What stands for the image: it names no program, no variable and no user."""
    from mamushka.engine.images import ImageSummary
    from mamushka.spec import platform

    if not path.startswith("/"):
        raise Invalid(f"the root {path!r} is not an absolute path")
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        raise NotFound(f"the root {path} is no directory here", hint="--rootfs takes a directory in place of the image")
    return ImageSummary(_PREFIX + real, "", (path,), (), 0.0, 0, str(platform.host()), (), config={})


def path_of(image_id: str) -> str:
    """The directory, or an empty text where the workload has an image."""
    return image_id[len(_PREFIX) :] if image_id.startswith(_PREFIX) else ""
