"""`parspike check`: whether a chip can run a converted network.

torch is imported inside it, so that `--help` answers at once, and after what can be refused without it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from parspike.cli import checks, console
from parspike.cli.options import Json

__all__ = ["check"]


def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="what `parspike convert` wrote")],
    target: Annotated[
        Literal["loihi2", "speck", "spinnaker2", "akida", "hls4ml", "generic"],
        typer.Option(help="the chip, or the tool that it is programmed with"),
    ] = "generic",
    json: Json = False,
) -> None:
    """Say whether a chip can run a converted network: every blocker at once, graded faithful, approximate or
    unsupported. Exit code 1 if it cannot. `parspike data check` looks at images instead."""
    checks.file(file)
    import parspike

    found = parspike.check(parspike.load(file), target)
    console.result(json, {"file": file, **found.to_json()}, str(found))
    if not found.ok:
        raise typer.Exit(1)
