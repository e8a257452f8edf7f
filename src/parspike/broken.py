"""Images that cannot be decoded: the errors that mean it, the message, and the list of the images left out."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from parspike.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BROKEN", "decoded", "in_colour", "reason"]

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


def decoded(
    name: str, read: Callable[[], Tensor], skip_broken: bool, broken: list[str], others: Callable[[], str] = lambda: ""
) -> Tensor | None:
    """The image that `read` gives, (C, H, W); None, and its name in `broken`, where it may be left out.

    others: what the error says of the other images, asked for where there is one.
    Raises `InputError` with the name on a damaged image that may not, and on one that does not fit.
    """
    try:
        return read()
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except BROKEN as error:
        if not skip_broken:
            raise InputError(
                f"{name}: cannot be decoded ({reason(error)}); replace it, or leave such files out with "
                f"--skip-broken{others()}"
            ) from error
        if name not in broken:
            broken.append(name)
        return None


def in_colour(image: Image.Image) -> Image.Image:
    """An image as RGB of 8 bits. Raises `ValueError` for deeper grey values, which Pillow would cut at 255, so that
    nearly all of the image were white, or black."""
    if image.mode == "F" or (image.mode.startswith("I") and not _fits(image)):
        raise ValueError(
            "its grey values have more than 8 bits, and would be cut at 255: save it with values from 0 to 255, or "
            "give an .npz with floats as the network takes them"
        )
    return image.convert("RGB")


def _fits(image: Image.Image) -> bool:
    low, high = image.getextrema()
    return 0 <= low <= high <= 255  # pyright: ignore[reportOperatorIssue]


def reason(error: BaseException) -> str:
    """Why an image cannot be decoded, without what changes from run to run, such as addresses in memory.

    >>> reason(UnidentifiedImageError("cannot identify image file <_io.BytesIO object at 0x7f69ae0aa4d0>"))
    'it is no image'
    """
    if isinstance(error, UnidentifiedImageError):
        return "it is no image"
    return str(error) or type(error).__name__
