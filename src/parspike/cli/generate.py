"""`parspike generate`: text that a converted language model writes.

torch is imported inside it, so that `--help` answers at once, and after what can be refused without it.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from parspike.cli import checks, console
from parspike.cli.options import NET, OUT, Json, Seed, TokenizerOption
from parspike.errors import OptionError

__all__ = ["generate"]

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal would obey: a network may write any."""


def generate(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="what `parspike convert` wrote, or a network as hf:FOLDER")
    ],
    prompt: Annotated[str, typer.Option(help="the text to go on with", rich_help_panel=OUT)],
    tokens: Annotated[int, typer.Option(min=1, help="at most so many tokens", rich_help_panel=OUT)] = 40,
    temperature: Annotated[
        float, typer.Option(min=0, help="0: the likeliest token; above, drawn by their probabilities",
                            rich_help_panel=OUT)
    ] = 0.0,
    chat: Annotated[
        bool, typer.Option("--chat", help="the prompt is a message; the network answers it", rich_help_panel=OUT)
    ] = False,
    seed: Seed = 0,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="run the whole text again for each token", rich_help_panel=OUT)
    ] = False,
    beside: Annotated[
        bool, typer.Option("--beside", help="also what the network itself writes", rich_help_panel=NET)
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="--beside with this network (default: noted in FILE)", rich_help_panel=NET),
    ] = None,
    tokenizer: TokenizerOption = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Let a converted language model go on with a text. The text alone goes to stdout, as it is written."""
    from parspike.cli.options import ImageOptions

    is_file = not file.startswith("hf:")
    if is_file:
        checks.file(file)
    else:
        checks.network(file, None)
        if beside or against is not None:
            raise OptionError(f"--beside is for a converted network, and {file} is the network itself: leave it out")
    if against is not None:
        checks.network(against, None)
    if not prompt.strip():
        raise OptionError("--prompt is empty: give at least one word")
    options = ImageOptions(tokenizer=tokenizer)
    options.preprocessing()
    import parspike
    from parspike.cli.preprocess import noted, remembered
    from parspike.cli.spec import load
    from parspike.language import pieces

    if is_file:
        network: Any = parspike.load(file)
        prepared = options.preprocessing(remembered(network))
        if beside or against is not None:
            against = against or noted(network)
            if against is None:
                raise OptionError(f"{file} does not say which network it came from: give --against hf:FOLDER")
            checks.network(against, None)
    else:
        found = load(file, None)
        network, prepared = found.model, options.preprocessing(found.preprocess)
    if prepared.text is None:
        raise OptionError(f"{file} does not say which tokenizer its network has: give --tokenizer FOLDER")
    if prepared.text.head not in (None, "causal"):
        raise OptionError(f"{file} returns no scores of the next token (it is of the kind '{prepared.text.head}')")
    words = prepared.text.opened()
    start = words.chat(prompt) if chat else words.encode(prompt)
    how = {"tokens": tokens, "temperature": temperature, "seed": seed, "context": prepared.text.context,
           "cache": not no_cache}  # fmt: skip

    def written(one: Any, title: str | None) -> tuple[str, float]:
        began, parts = time.perf_counter(), []
        made = pieces(one, words, start, **how)  # refuses what it must before anything is printed
        if title and not json:
            typer.echo(f"── {title}")
        if not json and not chat:
            typer.echo(prompt, nl=False)
        for piece in made:
            parts.append(piece)
            if not json:
                typer.echo(CONTROL.sub("\ufffd", piece), nl=False)
        if not json:
            typer.echo("")
        return "".join(parts), time.perf_counter() - began

    text, seconds = written(network, f"{Path(file).name}, T = {network.T}" if against else None)
    answer: dict[str, Any] = {"file": file, "prompt": prompt, "text": text, "seconds": round(seconds, 3)}
    if against is not None:
        answer["against"] = against
        answer["network_text"], _ = written(load(against, None).model, against)
        answer["same"] = answer["network_text"] == text
    if json:
        console.result(True, answer, "")
