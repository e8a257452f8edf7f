"""`parspike eval`: a converted network on images, beside the network that it came from.

torch is imported inside it, so that `--help` answers at once, and after what can be refused without it.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from parspike.cli import checks, console, processes
from parspike.cli.options import (
    HOW,
    MAX_T,
    NET,
    OUT,
    DataOption,
    Json,
    Limit,
    RunOptions,
    Split,
    Weights,
    spread,
    starting,
)
from parspike.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from parspike.cli.images import Images
    from parspike.cli.spec import Network

__all__ = ["evaluate"]


@spread
def evaluate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="what `parspike convert` wrote, or a .nir file")],
    data: DataOption,
    against: Annotated[
        str | None, typer.Option(metavar="SPEC", help="also run the network it came from", rich_help_panel=NET)
    ] = None,
    weights: Weights = None,
    engine: Annotated[
        Literal["count", "integer", "parallel", "serial", "serial-if", "over-time"] | None,
        typer.Option(
            help="how to run parallel neurons (default: count); all but serial-if, which is for comparison, give the "
            "same. integer: count on integer kernels, the default of what `parspike lower` wrote. over-time: the one "
            "way to run if and lif neurons",
            rich_help_panel=HOW,
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="compile the count engine (torch.compile): the first batch takes its time",
            rich_help_panel=HOW,
        ),
    ] = False,
    T: Annotated[
        int | None,
        typer.Option(
            "-T", "--T", min=1, max=MAX_T, help="time-steps, of a .nir file without them", rich_help_panel=NET
        ),
    ] = None,
    operations: Annotated[
        bool, typer.Option("--operations", help="also operations, energy and error by layer", rich_help_panel=OUT)
    ] = False,
    energy: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE",
            help="--operations with picojoules from this table: float32-45nm, int8-45nm, or a .toml file of your own",
            autocompletion=starting("float32-45nm", "int8-45nm"),
            rich_help_panel=OUT,
        ),
    ] = None,
    measure: Annotated[
        Literal["accuracy", "perplexity", "cosine"] | None,
        typer.Option(
            help="perplexity: how well the next token of a text is known; cosine: with the network's vectors (defaults "
            "of language models and of embedders on text)",
            rich_help_panel=OUT,
        ),
    ] = None,
    neurobench: Annotated[
        bool, typer.Option("--neurobench", help="also operations by NeuroBench's names and rules", rich_help_panel=OUT)
    ] = False,
    split: Split = None,
    limit: Limit = None,
    *,
    options: RunOptions,
    devices: processes.Processes = 1,
    json: Json = False,
) -> None:
    """Run a converted network on images, recordings or text: accuracy, agreement with the network it came from, the
    relative error of its outputs, spikes, time, cost. Outputs that are values have no accuracy and agreement. A
    language model has a perplexity."""

    given = {"--operations": operations, "--energy": energy is not None, "--neurobench": neurobench}
    counted = next((name for name, value in given.items() if value), None)

    def check() -> None:
        if counted and engine == "serial-if":
            raise OptionError(f"{counted} counts the converted network's spikes, not those of serial-if: leave one out")
        if measure == "perplexity" and (operations or energy is not None or neurobench):
            raise OptionError(f"--measure perplexity has no operations: give {counted} in a call of its own")
        if measure == "cosine" and against is None:
            raise OptionError("--measure cosine compares with the network's vectors: give it with --against SPEC")
        if compiled and engine not in (None, "count"):
            raise OptionError(f"--compile is for engine count: leave it or --engine {engine} out")
        if weights is not None and against is None:
            raise OptionError("--weights belongs to the network of --against SPEC; the spiking network has its own")
        checks.file(file)
        if against is not None:
            checks.network(against, weights)
        checks.images(data, split)
        options.preprocessing()

    together = processes.join(devices, check)
    import parspike
    from parspike.cli.images import explained, inputs_over_time, taken, warn_of_few
    from parspike.cli.preprocess import remembered
    from parspike.cli.spec import load

    table = None if energy is None else parspike.Energy.named(energy)
    snn = options.placed(parspike.load(file, T=T))
    if compiled:
        snn.compile()
    chosen = engine or snn.engine
    network = load(against, weights, snn) if against else None
    if network is not None:
        options.placed(network.model)
    preprocess = options.preprocessing(remembered(snn) or (network and network.preprocess))
    images = options.open(data, preprocess, inputs=inputs_over_time(snn), split=split, prefer="test", limit=limit)
    head = images.preprocess.text.head if images.preprocess.text else None
    if measure == "perplexity" and not images.written:
        raise OptionError(f"--measure perplexity is of text, and {data} holds none: give .txt files")
    language = measure == "perplexity" or (measure is None and images.written and head == "causal")
    vectors = measure == "cosine" or (measure is None and images.written and head in ("hidden", "sentence"))
    score = _Score(language, vectors)
    with console.progress("evaluating") as progress, explained(images):
        for _, item in together.share(images.batches()):
            score.add(snn, network, chosen, *taken(item), images.frames)
            progress("", score.images, (len(images) - len(images.broken)) // together.size)
    score = _Score.of_all(together.exchange(score))
    preprocess = images.preprocess
    if together.rank:
        return
    warn_of_few(images, data, score.outputs.classes)
    if images.maps and score.outputs.accuracy is None:
        console.warn(f"the maps of labels in {data} are no classes of this network's answers: there is no accuracy")
    report = bench = None
    if operations or table is not None:
        with console.progress("counting operations") as progress:
            model = network.model if network else None
            report = parspike.measure(snn, images, against=model, energy=table, progress=progress)
    if neurobench:
        with console.progress("counting by NeuroBench's rules") as progress:
            bench = parspike.neurobench(snn, images, progress=progress)
    answer = {
        "file": file,
        "T": snn.T,
        "engine": chosen,
        **score.fields(),
        **({"operations": report.to_json()} if report else {}),
        **({"neurobench": bench.to_json()} if bench else {}),
        "preprocessing": preprocess.to_json(),
        "skipped": console.left_out(images.broken),
    }
    text = score.text(file, snn.T, chosen, images)
    console.result(json, answer, "\n\n".join(str(part) for part in (text, report, bench) if part))


def _ended(x: Tensor) -> float:
    """The time when a GPU has computed what it was asked for; calls return before."""
    if x.is_cuda:
        import torch

        torch.cuda.synchronize(x.device)
    return time.perf_counter()


class _Score:
    """Sums over batches; a share is None where it cannot be told."""

    def __init__(self, language: bool = False, vectors: bool = False) -> None:
        import parspike

        self.images = self.spikes = self.neurons = 0
        self.outputs = parspike.Scores()
        self.language = parspike.Perplexity() if language else None
        self.vectors = vectors
        self.compared = False
        self.seconds = self.seconds_network = 0.0

    @classmethod
    def of_all(cls, scores: list[_Score]) -> _Score:
        """That of the batches of all processes."""
        total = cls()
        for name in ("images", "spikes", "neurons", "compared", "seconds", "seconds_network"):
            setattr(total, name, sum(getattr(score, name) for score in scores))
        total.outputs = total.outputs.merged(score.outputs for score in scores)
        found = [score.language for score in scores if score.language is not None]
        total.language = found[0].merged(found) if found else None
        total.vectors = any(score.vectors for score in scores)
        return total

    def add(
        self, snn: Any, network: Network | None, engine: str, x: Any, y: Tensor | None, frames: Collection[str]
    ) -> None:
        """x: the inputs, a tensor, or tensors by their names. frames: those of the names ("" of the one input) whose
        tensors are over time, (T, B, …); the network gets their means."""
        import torch

        several = isinstance(x, dict)
        values: dict[str, Tensor] = x if several else {"": x}

        def given(values: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
            return ((), values) if several else (tuple(values.values()), {})

        name, first = next(iter(values.items()))
        if not self.images:  # the first call prepares kernels and memory: not what an image costs
            some = slice(None if snn.compiled else 1)
            args, named = given({n: v[:, some] if n in frames else v[some] for n, v in values.items()})
            snn.run(*args, engine=engine, record=snn.compiled, **named)
        args, named = given(values)
        start = time.perf_counter()
        run = snn.run(*args, engine=engine, record=True, **named)
        self.seconds += _ended(first) - start
        self.images += first.shape[int(name in frames)]
        # In float64 sums of counts are exact, so they do not depend on their order and on which process formed them.
        for layer, sent in run.sent.items():
            self.spikes += float(sent.sum(dtype=torch.float64))
            self.neurons += sent.numel() * run.lines.get(layer, 1)
        output = None
        if network is not None:
            args, named = given({n: v.mean(0) if n in frames else v for n, v in values.items()})
            start = time.perf_counter()
            with torch.inference_mode():
                output = network.answer(*args, **named)
            self.seconds_network += _ended(first) - start
            self.compared = True
        if self.language is not None:
            self.language.add(run.logits, first, output)
        else:
            self.outputs.add(run.logits, output, y)

    def fields(self) -> dict[str, Any]:
        n = self.images
        return {
            "images": n,
            "accuracy": self.outputs.accuracy,
            "network_accuracy": self.outputs.network_accuracy,
            "agreement": None if self.vectors else self.outputs.agreement,
            "error": self.outputs.error,
            **(self.language.to_json() if self.language else {}),
            **({"cosine": self.outputs.cosine} if self.vectors else {}),
            "spikes_per_neuron": self.spikes / self.neurons if self.neurons else None,
            "seconds_per_image": self.seconds / n,
            "network_seconds_per_image": self.seconds_network / n if self.compared else None,
        }

    def text(self, file: str, T: int, engine: str, images: Images) -> str:
        score = self.fields()
        item = "recording" if images.frames else "image" if images.preprocess.text is None else "sequence"
        each = f"an {item}" if item == "image" else f"a {item}"
        unknown = not (self.outputs.answers or self.compared)
        values = "values, no class scores: --against SPEC tells their error" if unknown else None
        if (number := self.outputs.outputs) > 1 and not self.outputs.answers:
            values = f"{number}, none named logits, so all are values without accuracy; net.onnx:NAME is one of a file"

        def percent(name: str) -> str | None:
            return None if score[name] is None else f"{100 * score[name]:.2f} %"

        def milliseconds(name: str) -> str | None:
            return None if score[name] is None else f"{console.figure(1000 * score[name])} ms {each}"

        spikes = score["spikes_per_neuron"]
        return console.table(
            {
                "file": file,
                "T, engine": f"{T}, {engine}",
                f"{item}s": score["images"],
                **(self.language.rows() if self.language else {}),
                "accuracy": percent("accuracy"),
                "network's accuracy": percent("network_accuracy"),
                "agreement": percent("agreement"),
                "mean cosine": None if score.get("cosine") is None else f"{score['cosine']:.4f}",
                "outputs": None if self.language else values,
                "relative error": percent("error"),
                "spikes per neuron": None if spikes is None else f"{spikes:.3f} of {T}",
                "time": milliseconds("seconds_per_image"),
                "network's time": milliseconds("network_seconds_per_image"),
                "preprocessing": images.prepared,
            }
        )
