"""What happens to an image, or a text, before the network sees it: one value, which the file of a converted network
keeps.

torch is imported where a tensor is made, so that a wrong option is said at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from parspike.errors import FileError, InputError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from parspike import Tokenizer

__all__ = ["FILTERS", "Preprocessing", "Text", "noted", "noted_largest", "noted_weights", "remember", "remembered"]

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Text:
    """How text becomes token numbers. tokenizer: the folder, or .gguf file, that it is in. tokens: of a sequence; None
    for as many as the network takes, 256 at most. context: tokens at most that the network takes. vocabulary: SHA-256
    of the tokenizer's words, which tells another one. head: what the network returns (`parspike.language`)."""

    tokenizer: str
    tokens: int | None = None
    context: int | None = None
    vocabulary: str | None = None
    head: str | None = None

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.tokens or min(256, self.context or 256)

    def checked(self) -> Text:
        """Itself. Raises `OptionError` for sequences that the network cannot take."""
        if self.context is not None and self.length > self.context:
            raise OptionError(f"--tokens {self.length}: the network takes at most {self.context} tokens")
        return self

    def opened(self) -> Tokenizer:
        """The tokenizer. Raises `FileError` where it is gone, `OptionError` where it is another one."""
        from parspike import Tokenizer

        try:
            found = Tokenizer(self.tokenizer)
        except FileError as error:
            if Path(self.tokenizer).exists():
                raise
            raise FileError(
                f"the network's tokenizer is no longer at {self.tokenizer}: say where it is with --tokenizer FOLDER"
            ) from error
        if self.vocabulary is not None and found.vocabulary != self.vocabulary:
            raise OptionError(
                f"the tokenizer of {self.tokenizer} has other words than the one that the network was converted with: "
                "give that one with --tokenizer FOLDER"
            )
        return found


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the network sees it, in this order.

    channels (1 grey, 3 colour; None: files as colour, arrays as they are) → short side to `size` →
    centre `crop` → values to [0, 1] → (x − mean) / std. text: of text instead, how it becomes token numbers.

    >>> Preprocessing(size=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).crop
    224
    """

    size: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    interpolation: str = "bilinear"
    channels: int | None = None
    text: Text | None = None

    def __post_init__(self) -> None:
        for name in ("size", "crop"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"--{name} {value}: give a number of pixels, at least 1")
        if not all(0 < s < math.inf for s in self.std):
            raise OptionError(f"--std {self.std}: every value must be above 0")
        if not all(-math.inf < m < math.inf for m in self.mean):
            raise OptionError(f"--mean {self.mean}: every value must be a number")
        if self.channels not in (None, 1, 3):
            raise OptionError(f"images have 1 or 3 channels, not {self.channels}")
        if self.interpolation not in FILTERS:
            raise OptionError(f"interpolation {self.interpolation!r}: choose one of {', '.join(FILTERS)}")

    def __str__(self) -> str:
        return self.of("images")

    def of(self, kind: str) -> str:
        """What is done with items of a kind: "images", "inputs" (floats, as the network takes them) or "numbers" (whole
        ones)."""
        if self.text is not None:
            return f"sequences of {self.text.length} tokens, by the tokenizer of {self.text.tokenizer}"
        if kind == "numbers":
            return "none"
        colour = {None: [], 1: ["grey"], 3: ["colour"]}[self.channels]
        size = [f"short side {self.size} ({self.interpolation})"] if self.size else []
        crop = [f"centre {self.crop}"] if self.crop else []
        norm = [] if (self.mean, self.std) == ((0.0,), (1.0,)) else [f"mean {self.mean}", f"std {self.std}"]
        return ", ".join([*colour, *size, *crop, "x/255", *norm] if kind == "images" else norm or ["none"])

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        fields = asdict(self)
        if self.text is None:
            del fields["text"]
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_json`.

        >>> p = Preprocessing(size=40, mean=(0.5,))
        >>> Preprocessing.from_json(p.to_json()) == p
        True
        """
        as_made: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        try:
            if isinstance(as_made.get("text"), dict):
                as_made["text"] = Text(**as_made["text"])
            return cls(**as_made)
        except TypeError as error:
            raise OptionError(f"the preprocessing {str(fields)[:200]} cannot be understood: {error}") from error

    def __call__(self, image: np.ndarray | Image.Image) -> Tensor:
        """One image, (H, W[, C]) uint8, → (C, H, W) float32."""
        import torch

        pil = image if isinstance(image, Image.Image) else Image.fromarray(image)
        if self.channels is not None:
            pil = pil.convert({1: "L", 3: "RGB"}[self.channels])
        if self.size is not None:
            pil = pil.resize(_short_side(pil.size, self.size), FILTERS[self.interpolation])
        if self.crop is not None:
            pil = pil.crop(_centre(pil.size, self.crop))
        pixels = np.asarray(pil, dtype=np.float32)
        x = torch.from_numpy(pixels / np.float32(255))
        x = x.unsqueeze(0) if x.ndim == 2 else x.permute(2, 0, 1).contiguous()
        return self.normalise(x)

    def unprepared(self, x: Tensor) -> Tensor:
        """An input (C, …) as it was before `normalise`."""
        import torch

        shape = (-1,) + (1,) * (x.ndim - 1)
        return x * torch.tensor(self.std).view(shape) + torch.tensor(self.mean).view(shape)

    def normalise(self, x: Tensor) -> Tensor:
        """(x − mean) / std along the channels, the first axis of x."""
        import torch

        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, x.shape[0]):
                raise InputError(
                    f"--{name} has {len(values)} values but the images have {x.shape[0]} channel(s): "
                    "give one value, or one a channel"
                )
        shape = (-1,) + (1,) * (x.ndim - 1)
        return (x - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)


def remember(
    snn: Any, spec: str, weights: str | None, data: str | None, preprocess: Preprocessing, largest: float | None = None
) -> None:
    """Note in a converted network how its images were prepared: `eval` prepares them in the same way by default.

    largest: magnitude in an array of floats, which is taken as it is; other arrays are compared with it.
    """
    if preprocess.text is not None and (found := re.fullmatch(r"hf:.+?(:\w+)?", spec)):
        spec = f"hf:{preprocess.text.tokenizer}{found[1] or ''}"  # its place from wherever the file is read
    snn.provenance["command_line"] = {
        "spec": spec,
        "weights": weights,
        "data": data,
        "preprocessing": preprocess.to_json(),
    }
    if largest is not None:
        snn.provenance["command_line"]["largest"] = largest


def remembered(snn: Any) -> Preprocessing | None:
    """How `remember` noted that the images were prepared; None for a network that was not made on the command line."""
    said = snn.provenance.get("command_line")
    if not said:
        return None
    fields = said.get("preprocessing") if isinstance(said, Mapping) else said
    if not isinstance(fields, Mapping):
        raise OptionError(f"the preprocessing that the file notes, {str(fields)[:80]!r}, cannot be understood")
    return Preprocessing.from_json(fields)


def noted(snn: Any) -> str | None:
    """The SPEC of the network that a converted network was made from, where `remember` noted it."""
    said = snn.provenance.get("command_line")
    spec = said.get("spec") if isinstance(said, Mapping) else None
    return spec if isinstance(spec, str) else None


def noted_weights(snn: Any, spec: str) -> str | None:
    """The file of weights that a converted network was made with, where it was made from this SPEC."""
    weights = snn.provenance["command_line"].get("weights") if noted(snn) == spec else None
    return weights if isinstance(weights, str) else None


def noted_largest(snn: Any) -> float | None:
    """The `largest` of `remember`, where it is one."""
    said = snn.provenance.get("command_line")
    found = said.get("largest") if isinstance(said, Mapping) else None
    return found if isinstance(found, float) and 0 < found < float("inf") else None


def _short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(W, H) with the short side `short`, the ratio kept.

    >>> _short_side((640, 427), 256)
    (383, 256)
    """
    w, h = size
    return (short, max(short, short * h // w)) if w <= h else (max(short, short * w // h), short)


def _centre(size: tuple[int, int], crop: int) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of the centre crop of an image (W, H)."""
    w, h = size
    if crop > min(w, h):
        raise InputError(f"the image is {h}×{w} (H×W), smaller than the crop {crop}: give --size {crop} or more")
    left, top = round((w - crop) / 2), round((h - crop) / 2)
    return left, top, left + crop, top + crop
