"""What a path holds, and what transformers says about it, as one clear error. Nothing is downloaded, and no code of a
folder is run."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parspike.errors import FileError, MissingExtraError, OptionError, ParspikeError, path_of

__all__ = ["place", "quiet", "reading", "transformers"]

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
"""Files of which a folder with a tokenizer has one."""


def place(path: str | os.PathLike[str], want: str) -> tuple[Path, dict[str, str]]:
    """The folder of a path, and the name of its GGUF file as transformers takes it, if it is one.

    want: "network" or "tokenizer". Raises `FileError` where neither is there.
    """
    where = path_of(path)
    if where.suffix.lower() == ".gguf" and where.is_file():
        with where.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise FileError(f"{where}: this is no GGUF file, or it is damaged")
        return where.parent, {"gguf_file": where.name}
    if not where.exists():
        raise FileError(
            f"there is no {where}: give a folder with config.json and *.safetensors, or a .gguf file; parspike "
            "downloads nothing, so fetch it elsewhere (hf download NAME --local-dir FOLDER)"
        )
    if not where.is_dir():
        raise FileError(f"{where}: expected a folder with config.json and *.safetensors, or a .gguf file")
    inside = {file.name for file in where.iterdir()}
    blocks = sorted(name for name in inside if name.lower().endswith(".gguf"))
    if "config.json" not in inside and len(blocks) == 1:
        return place(where / blocks[0], want)
    if want == "tokenizer":
        if not inside & set(TOKENIZERS):
            raise FileError(
                f"{where}: there is no tokenizer in it (tokenizer.json): copy it there from where the network comes, "
                "or name its folder with --tokenizer FOLDER (in Python: parspike.Tokenizer(folder))"
            )
        return where, {}
    if "config.json" not in inside:
        more = f"; name one of its files: {', '.join(blocks)}" if blocks else ""
        raise FileError(f"{where}: there is no network in it (config.json and *.safetensors, or one .gguf file){more}")
    if not any(name.endswith(".safetensors") for name in inside):
        other = any(name.endswith((".bin", ".pt", ".pth")) for name in inside)
        raise FileError(
            f"{where}: there are no weights in it (*.safetensors)"
            + ("; save it again with  model.save_pretrained(folder)" if other else "")
        )
    return where, {}


def transformers(*more: str) -> Any:
    """The package, after the packages `more` were found too."""
    for name in (*more, "transformers"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or name, extra="lm") from error
    return importlib.import_module("transformers")


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """transformers without progress bars and remarks on stderr; as it was afterwards."""
    logging = library.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the bar of a GGUF file heeds no setting
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def reading(where: Path, what: str) -> Iterator[None]:
    """Turns any error of transformers into one `FileError` about this path."""
    try:
        yield
    except ParspikeError:
        raise
    except Exception as error:
        at: BaseException | None = error
        while at is not None:
            if "torchvision::" in str(at):
                raise OptionError(
                    f"{where}: transformers imports torchvision, and the installed one was built for another torch: "
                    "install a pair that belongs together, or remove torchvision, which no language model needs"
                ) from error
            at = at.__cause__ or at.__context__
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[0][:300] if lines else type(error).__name__
        if "trust_remote_code" in str(error):
            said = "it needs code of its own (trust_remote_code), which parspike does not run"
        raise FileError(f"{where}: transformers cannot read the {what} ({said})") from error
