"""zstd: Python's own from 3.14 on, backports-zstd before that. docs/decisions/0005-backports-zstd.md."""

from __future__ import annotations

from mamushka.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def decompressor() -> Callable[[], Any]:
    """What makes a decompressor for one frame; imported when it is asked for. Unsupported where there is none."""
    try:
        from compression.zstd import ZstdDecompressor  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        try:
            from backports.zstd import ZstdDecompressor
        except ImportError as error:
            raise Unsupported(
                "cannot read zstd: neither Python's compression.zstd nor backports.zstd is there",
                hint="pip install backports-zstd",
            ) from error
    return ZstdDecompressor  # type: ignore[no-any-return,unused-ignore]
