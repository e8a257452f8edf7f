"""Text → tokens → text, by the tokenizer of a network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parspike.errors import FileError, InputError, OptionError, path_of
from parspike.language.folder import place, quiet, reading, transformers

__all__ = ["Tokenizer", "read_text", "text_files"]


class Tokenizer:
    """The tokenizer of a network: a Hugging Face folder (tokenizer.json …) or a .gguf file.

        tokenizer = parspike.Tokenizer("smollm2/")
        tokenizer.encode("Once upon a time")              # [6403, 2525, 253, 655]
        x = tokenizer.sequences("texts/", tokens=256)     # (N, 256) int64: for calibration=, and for perplexity

    `hf` is the tokenizer of transformers inside. Raises `FileError` where there is none, `MissingExtraError` without
    the extra `lm`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        folder, named = place(path, "tokenizer")
        library = transformers(*(["gguf"] if named else []))
        with quiet(library), reading(Path(path), "tokenizer"):
            self.hf = library.AutoTokenizer.from_pretrained(folder, local_files_only=True, **named)
        self.path = str(Path(path).resolve())
        if not len(self.hf):
            raise FileError(f"{path}: the tokenizer is empty")

    @cached_property
    def vocabulary(self) -> str:
        """SHA-256 of the vocabulary: equal for tokenizers that number the same words."""
        words = sorted(self.hf.get_vocab().items(), key=lambda item: (item[1], item[0]))
        return hashlib.sha256("\n".join(f"{number} {word}" for word, number in words).encode()).hexdigest()

    @property
    def context(self) -> int | None:
        """Tokens at most that the tokenizer states; None where it states none."""
        most = self.hf.model_max_length
        return int(most) if most < 1 << 31 else None

    @property
    def end(self) -> int | None:
        """The token that ends a text."""
        return self.hf.eos_token_id

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with the special ones that the tokenizer adds at its ends."""
        with quiet(transformers()):
            return list(self.hf(text, verbose=False)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return self.hf.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def chat(self, text: str) -> list[int]:
        """The tokens of a conversation that begins with this message, up to where the answer begins. Raises
        `OptionError` where the tokenizer has no template of conversations."""
        if not self.hf.chat_template:
            raise OptionError(f"{self.path}: the tokenizer has no chat template: give the text alone, without --chat")
        said = [{"role": "user", "content": text}]
        return list(self.hf.apply_chat_template(said, add_generation_prompt=True, return_dict=True)["input_ids"])

    def sequences(self, text: str | os.PathLike[str] | Iterable[str], tokens: int = 256) -> Tensor:
        """Text cut in sequences of as many tokens, (N, tokens) int64.

        text: a .txt file, a folder with .txt files, or texts themselves (an iterable of strings). Each file, or text,
        is cut by itself, from its beginning; what is left at its end is dropped. Each sequence is a whole input as the
        tokenizer makes it, with the special tokens at its ends where it adds some.
        Raises `InputError` for empty text and text shorter than one sequence, `FileError` for files that are no text.
        """
        if isinstance(text, (str, os.PathLike)):
            files = text_files(text)
            named = [(str(file), read_text(file)) for file in files]
        else:
            named = [(f"text {number}", one) for number, one in enumerate(text)]
        cut = [torch.tensor(self.cut(one, tokens), dtype=torch.long).view(-1, tokens) for _, one in named]
        found = torch.cat(cut) if cut else torch.zeros(0, tokens)
        if len(found):
            return found
        raise InputError(self.too_short(named, tokens, str(text) if isinstance(text, (str, os.PathLike)) else "texts"))

    def cut(self, text: str, tokens: int) -> list[list[int]]:
        """One text as sequences of as many tokens, without the rest at its end."""
        added = self.hf.num_special_tokens_to_add()
        if tokens <= max(1, added):
            raise OptionError(
                f"tokens={tokens}: a sequence has at least {max(2, added + 1)}"
                + (f", since the tokenizer adds {added} of its own" if added else "")
            )
        with quiet(transformers()):
            made: Any = self.hf(
                text, truncation=True, max_length=tokens, stride=0, padding=False, return_overflowing_tokens=True,
                verbose=False,
            )["input_ids"]  # fmt: skip
        made = made if made and isinstance(made[0], list) else [made]
        return [list(one) for one in made if len(one) == tokens]

    def too_short(self, named: Sequence[tuple[str, str]], tokens: int, where: str) -> str:
        """Why texts gave no sequence, and what to do."""
        if not any(text.strip() for _, text in named):
            return f"{where}: the text is empty"
        name, longest = max(named, key=lambda one: len(one[1]))
        long = len(self.encode(longest))
        of = f", of {len(named)} texts the longest ({name})," if len(named) > 1 else ""
        return (
            f"{where}: the text{of} has {long} tokens, fewer than one sequence of {tokens}: give more text, or "
            f"--tokens {max(2, long)} or less (in Python: tokens=)"
        )


def text_files(path: str | os.PathLike[str]) -> list[Path]:
    """The .txt files that a path names, in the order of their names."""
    where = path_of(path)
    if where.is_file():
        return [where]
    if not where.is_dir():
        raise FileError(f"{where}: there is no such file or folder")
    files = sorted(file for file in where.rglob("*.txt") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise InputError(f"{where}: there are no .txt files in it")
    return files


def read_text(path: Path) -> str:
    """A file's text. Raises `FileError` where it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path}: byte {error.start} is no UTF-8: save the text as UTF-8 (iconv -f latin1 -t utf-8)"
        ) from error
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error})") from error
