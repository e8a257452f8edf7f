"""The command line: argument text → public names → printed result."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from parspike.cli import commands, console, demo, processes, train, tune
from parspike.errors import ParspikeError

__all__ = ["app", "main"]


class OneClearError(TyperGroup):
    """Whatever goes wrong becomes one message and exit code 1; Ctrl-C is 130."""

    def invoke(self, ctx: Any) -> Any:
        as_json = "--json" in ctx.args
        try:
            with processes.one_fate(), console.warnings_shown():
                answer = super().invoke(ctx)
            processes.leave()
            return answer
        except (ParspikeError, typer.TyperException) as error:
            message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
            console.fail(as_json, type(error).__name__, message)
            processes.leave()
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            console.fail(as_json, "KeyboardInterrupt", "interrupted")
            raise typer.Exit(130) from error
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if as_json:
                console.fail(True, type(error).__name__, str(error))
            processes.leave()
            raise  # a defect of parspike: the traceback belongs on stderr


app = typer.Typer(
    cls=OneClearError,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turns trained PyTorch networks into parallel spiking neural networks.",
)
app.command()(commands.plan)
app.command()(commands.convert)
app.command("eval")(commands.evaluate)
app.command()(tune.tune)
app.command()(demo.demo)
app.command()(train.train)
app.add_typer(train.data_app, name="data")


def main() -> None:
    """Entry point of the script `parspike`."""
    app()
