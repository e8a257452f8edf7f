"""Images that cannot be decoded: which errors say so, the one message about it, and the list of those left out."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from PIL import Image

from parspike.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BROKEN", "decoded"]

# What Pillow and zipfile raise on a damaged file; SyntaxError is Pillow's word for a broken PNG chunk.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    Image.DecompressionBombError,
)


def decoded(name: str, read: Callable[[], Tensor], skip_broken: bool, broken: list[str]) -> Tensor | None:
    """The image that `read` gives, (C, H, W); None, and its name in `broken`, where it may be left out.

    Raises `InputError` with the name on a damaged image that may not, and on one that does not fit.
    """
    try:
        return read()
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except BROKEN as error:
        if not skip_broken:
            raise InputError(
                f"{name}: cannot be decoded ({error}); replace it, or leave such files out with --skip-broken"
            ) from error
        if name not in broken:
            broken.append(name)
        return None
