"""The command line: argument text → public names → printed result."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import parspike
from parspike.cli import (
    bench,
    console,
    convert,
    data_check,
    demo,
    diagnose,
    evaluate,
    export,
    generate,
    lower,
    plan,
    processes,
    report,
    spikes,
    sweep,
    target,
    train,
    tune,
    view,
)
from parspike.errors import ParspikeError

__all__ = ["app", "main"]


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of a disk that is full, a quota that is used up, and a file that may not be larger."""

INTERRUPTED = 130
"""What typer makes of Ctrl-C, and shells of a program that it ended."""


class OneClearError(TyperGroup):
    """Turns every exception into one message and exit code 1; Ctrl-C into exit code 130."""

    def main(self, args: Sequence[str] | None = None, *more: Any, standalone_mode: bool = True, **named: Any) -> Any:
        """Run a command line. Exits in `standalone_mode`, as typer does, and else gives the exit code."""
        console.show_anything()
        args = list(sys.argv[1:] if args is None else args)
        code = self._run(args, *more, **named)
        if standalone_mode:
            sys.exit(code)
        return code

    def _run(self, args: list[str], *more: Any, **named: Any) -> int:
        as_json = "--json" in args
        try:
            code = super().main(args, *more, standalone_mode=False, **named) or 0
            if code == INTERRUPTED:
                console.fail(as_json, "KeyboardInterrupt", "interrupted")
            return code
        except ParspikeError as error:
            console.fail(as_json, type(error).__name__, str(error), error.details)
        except typer.TyperException as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                typer.echo(error.format_message())
            else:
                console.fail(as_json, *usage(error))
        except OSError as error:
            if error.errno not in FULL:
                raise
            # Files say so themselves: this is what is printed, or a temporary file of torch's.
            place = f"'{error.filename}'" if error.filename else "what this command prints"
            console.fail(False, "OSError", f"cannot write {place}: {error.strerror}: make room, and start again")
        except Exception as error:
            if as_json:
                console.fail(True, type(error).__name__, str(error))
            raise  # a defect of parspike: the traceback belongs on stderr
        finally:
            processes.leave()
        return 1

    def invoke(self, ctx: Any) -> Any:
        with processes.one_fate(), console.warnings_shown():
            return super().invoke(ctx)


def usage(error: typer.TyperException) -> tuple[str, str]:
    """Kind and text of an error of typer; of an option's wrong value: which values there are, and which was given."""
    parameter: Any = getattr(error, "param", None)
    context: Any = getattr(error, "ctx", None)
    refused = getattr(error.__cause__, "errors", None)  # pydantic checks the values
    if parameter is not None and refused is not None:
        given = str(refused()[0]["input"])
        return "OptionError", f"{parameter.opts[0]} must be {_wanted(parameter)}, got {given}"
    text = " ".join(error.format_message().split()).removesuffix(".")
    return type(error).__name__, f"{text}; see {context.command_path} --help" if context is not None else text


def _wanted(parameter: Any) -> str:
    kind, least, most = parameter.type_descriptor, parameter.min, parameter.max
    if kind.choices is not None:
        *others, last = [str(getattr(choice, "value", choice)) for choice in kind.choices]
        return f"{', '.join(others)} or {last}"
    bounds = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"
    return f"{'a whole number' if kind.annotation is int else 'a number'}{bounds}"


app = typer.Typer(
    cls=OneClearError,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None if console.NARROW else "rich",
    help="Turns trained PyTorch networks into parallel spiking neural networks.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"parspike {parspike.__version__}")
        raise typer.Exit


@app.callback()
def before_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    """Options before a command."""


IMAGES = "--weights net.pt --data images/"
for command, function, example in (
    ("plan", plan.plan, "net.py:make --shape 3,224,224"),
    ("convert", convert.convert, f"net.py:make {IMAGES} -T 8 -o net.parspike"),
    ("eval", evaluate.evaluate, "net.parspike --data images/ --against net.py:make --weights net.pt"),
    (
        "generate",
        generate.generate,
        'net.parspike --prompt "Once upon a time" --tokens 40 --beside',
    ),
    ("lower", lower.lower, "net.parspike --data images/ --weights 4 --proof -o chip.parspike"),
    ("diagnose", diagnose.diagnose, "net.parspike net.py:make --weights net.pt --data images/ -o better.parspike"),
    ("export", export.export, "net.parspike net.nir --data images/"),
    ("tune", tune.tune, f"net.py:make {IMAGES} --drop 1.0"),
    ("sweep", sweep.sweep, f"net.py:make {IMAGES} --T 1,2,4,8 --out sweep.csv --out sweep.pdf"),
    ("bench", bench.bench, "bench.toml --jobs 2 --out bench.md --out bench.pdf"),
    ("check", target.check, "net.parspike --target speck"),
    ("report", report.report, "net.parspike --data images/ --against net.py:make --weights net.pt -o report.html"),
    ("view", view.view, "net.parspike other.parspike --data images/"),
    ("demo", demo.demo, "--json"),
    ("train", train.train, "cifar10-resnet20 --data cifar10.zip -o runs/one --set optimiser.epochs=30"),
):
    app.command(command, epilog=f"Example: parspike {command} {example}")(function)
data = typer.Typer(no_args_is_help=True, help="Look at data before they are used.")
data.command("check", epilog="Example: parspike data check images/ --size 256 --crop 224")(data_check.check)
app.add_typer(data, name="data")
trains = typer.Typer(no_args_is_help=True, help="Spike trains as files: packed bits and address events.")
for command, function, example in (
    ("write", spikes.write, "net.parspike --data images/ -o trains.npz"),
    ("show", spikes.show, "trains.npz --layer layer1.0.relu --neurons 0-19"),
):
    trains.command(command, epilog=f"Example: parspike spikes {command} {example}")(function)
app.add_typer(trains, name="spikes")


def main() -> None:
    """Entry point of the script `parspike`."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads of torch wait for each other by counting, and where other programs compute too, the one that counts
        # holds the processor that the other needs (docs/why.md). Read when torch is loaded, which is after this.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    app()
