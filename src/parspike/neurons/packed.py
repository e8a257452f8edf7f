"""Spike trains as bits: the T steps of a neuron in one word, or in several of 32 bits.

The last step is the lowest bit. A sorted train of k spikes, which is silent first (7), is then the number 2^k − 1; a
train of the weighted code, the binary digits of k with the highest first, is k itself; one spike whose time says k
(the onset code) is 2^(k−1). So a train is written without looking at its steps one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parspike.errors import InputError, OptionError

from .arguments import check_steps

__all__ = ["PackedTrains", "joined_trains", "number_of", "word_of", "words_of"]

BITS = {torch.uint8: 8, torch.int16: 16, torch.int32: 32}
"""Bits of a word, by its dtype."""


def word_of(T: int) -> torch.dtype:
    """The dtype of the words for trains of T steps: the narrowest that holds them all, else int32, of which there are
    ⌈T/32⌉."""
    return next((dtype for dtype, bits in BITS.items() if bits >= T), torch.int32)


def number_of(T: int) -> int:
    """Words of one neuron."""
    return -(-T // BITS[word_of(T)])


@dataclass(frozen=True, eq=False)
class PackedTrains:
    """Spike trains of one layer, one bit for each neuron and step.

        run = snn.run(x, record="packed")
        run.packed["layer1.0.relu"].unpack()        # what run.spikes["layer1.0.relu"] is: bool (T, B, …)

    words: (W, B, …), uint8 for T ≤ 8, int16 for T ≤ 16, else int32. T: time-steps. Bit j of word w of a neuron, counted
    from the lowest, is step T − 1 − (j + w · bits of a word); bits beyond the first step are 0. negative: bool (B, …)
    where neurons stand in pairs for a value of either sign: whether the spikes of this one are −1; else None.
    """

    words: Tensor
    T: int
    negative: Tensor | None = None

    @classmethod
    def of(cls, train: Tensor) -> PackedTrains:
        """The bits of a train (T, B, …): bool, or int8 of 0 and 1, or 0 and −1, for each neuron.

        Raises `InputError` on other values and on a train without a step.
        """
        if not isinstance(train, Tensor):
            raise InputError(f"train must be a tensor (T, B, …), got a {type(train).__name__}")
        if train.dim() == 0 or len(train) == 0:
            raise InputError(f"train must be (T, B, …) with time first and T >= 1, got {tuple(train.shape)}")
        negative = None
        if train.dtype != torch.bool:
            up, down = (train == 1).any(0), (train == -1).any(0)
            if train.dtype != torch.int8 or bool((train.abs() > 1).any()) or bool((up & down).any()):
                raise InputError("train must be bool, or int8 with spikes of one sign, 1 or −1, for each neuron")
            negative, train = down, train != 0
        T, dtype = len(train), word_of(len(train))
        bits = BITS[dtype]
        words = torch.zeros(number_of(T), *train.shape[1:], dtype=dtype, device=train.device)
        for step, spikes in enumerate(train):
            word, bit = divmod(T - 1 - step, bits)
            words[word] |= spikes.to(dtype) << bit
        return cls(words, T, negative)

    @property
    def shape(self) -> torch.Size:
        """Of the train that `unpack` gives: (T, B, …)."""
        return torch.Size((self.T, *self.words.shape[1:]))

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self.words.nbytes + (0 if self.negative is None else self.negative.nbytes)

    def unpack(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Spikes of steps start … stop − 1 (T if None): bool (steps, B, …), or int8 where some are −1.

        Raises `OptionError` on a slice that is not within 0 … T.
        """
        stop = self.T if stop is None else stop
        whole = isinstance(start, int) and isinstance(stop, int)
        if not whole or not 0 <= start <= stop <= self.T:
            raise OptionError(f"the slice start={start}, stop={stop} must satisfy 0 <= start <= stop <= T = {self.T}")
        bits = BITS[self.words.dtype]
        train = torch.empty((stop - start, *self.words.shape[1:]), dtype=torch.bool, device=self.words.device)
        for row, step in enumerate(range(start, stop)):
            word, bit = divmod(self.T - 1 - step, bits)
            # A shift that fills with the sign leaves the lowest bit right.
            torch.ne((self.words[word] >> bit) & 1, 0, out=train[row])
        if self.negative is None:
            return train
        return torch.where(self.negative, -train.to(torch.int8), train.to(torch.int8))

    def sent(self) -> Tensor:
        """Spikes of each neuron: int32 (B, …), without making the trains."""
        # By the well-known sums of neighbours: pairs, then fours, then bytes.
        total = torch.zeros(self.words.shape[1:], dtype=torch.int32, device=self.words.device)
        for word in self.words:
            v = word.to(torch.int32) & (0xFFFF if word.dtype == torch.int16 else -1)
            v = v - ((v >> 1) & 0x55555555)
            v = (v & 0x33333333) + ((v >> 2) & 0x33333333)
            v = (v + (v >> 4)) & 0x0F0F0F0F
            v = v + (v >> 8)
            total += (v + (v >> 16)) & 0x3F
        return total

    def __repr__(self) -> str:
        return f"PackedTrains({tuple(self.shape)}, {self.nbytes} bytes)"


def words_of(count: Tensor, T: int, code: str) -> Tensor:
    """The trains of counts 0 … levels (B, …), of any real dtype, as words (W, B, …). NaN sends nothing.

    code: "sorted", "weighted" (T of at most 31) or "onset". Raises `ValueError` on T below 1.

    >>> words_of(torch.tensor([0, 1, 3]), 3, "sorted")
    tensor([[0, 1, 7]], dtype=torch.uint8)
    >>> words_of(torch.tensor([0, 1, 3]), 3, "onset")
    tensor([[0, 1, 4]], dtype=torch.uint8)
    """
    dtype = word_of(check_steps(T))
    k = (count.nan_to_num(nan=0.0) if count.is_floating_point() else count).to(torch.int32)
    if code == "weighted":
        return k.to(dtype)[None]
    bits, number = BITS[dtype], number_of(T)

    def ones(k: Tensor) -> Tensor:
        """The lowest k bits, 0 ≤ k ≤ bits. By two shifts, since one by all bits of a word is undefined."""
        half = k >> 1
        return ((1 << half) << (k - half)) - 1

    parts = []
    for word in range(number):
        own = (k - word * bits).clamp_(0, bits) if number > 1 else k
        if code == "sorted":
            parts.append(ones(own.to(dtype)))
        else:
            before = (k - (1 + word * bits)).clamp_(0, bits)
            parts.append(ones(own.to(dtype)) ^ ones(before.to(dtype)))
    return parts[0][None] if number == 1 else torch.stack(parts)


def counts_of(words: Tensor, code: str, sent: Tensor) -> Tensor:
    """What `words_of` made the words of: int32 (B, …). sent: spikes of each neuron."""
    if code == "sorted":
        return sent
    if code == "weighted":
        return words[0].to(torch.int32) & (0xFFFF if words.dtype == torch.int16 else -1)
    bits = BITS[words.dtype]
    count = torch.zeros_like(sent)
    for word, held in enumerate(words):
        for bit in range(bits):
            count += ((held >> bit) & 1).to(torch.int32) * (word * bits + bit + 1)
    return count


def joined_trains(parts: Sequence[PackedTrains], dim: int) -> PackedTrains:
    """Trains one behind the other along a dimension of one step, such as the batch's."""
    first = parts[0]
    negative = None
    if first.negative is not None:
        negative = torch.cat([part.negative for part in parts if part.negative is not None], dim)
    return PackedTrains(torch.cat([part.words for part in parts], dim + 1), first.T, negative)
