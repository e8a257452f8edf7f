"""Every cell of a bench in turn: convert, measure, time beside the network itself, write a line."""

from __future__ import annotations

import gc
import math
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from parspike.bench.file import Bench, Cell, kind_named
from parspike.bench.lines import Lines, Reference, ResultFile
from parspike.bench.result import Benched
from parspike.calibrate import DAQCFS, ClosedForm, Recipe
from parspike.calibrate.batches import readable_again
from parspike.errors import (
    CalibrationError,
    InputError,
    OptionError,
    ParspikeError,
    ParspikeWarning,
    check_list,
    meant,
    path_of,
)
from parspike.graph import Quantised
from parspike.graph.forget import release
from parspike.graph.opened import taking
from parspike.measure import Scores
from parspike.neurons import Parallel
from parspike.plan import Plan
from parspike.snn import SNN
from parspike.sweep.quantised import quantised
from parspike.together import Together
from parspike.trial import Held, fitted, planned
from parspike.version import __version__

__all__ = ["BenchNetwork", "bench"]

MIB = 1 << 20
ROUNDS, LEAST, MOST = 3, 0.3, 3.0
"""Timed passes of the network and the conversion in turn: so many, more where these took less than `LEAST` seconds,
fewer where they took `MOST`."""


@dataclass
class BenchNetwork:
    """A network of a bench with its data.

    load: makes the network, in eval mode; called once, when its first cell begins. calibration, data: from a seed to
    the batches to fit on, and to the items to measure on, as `convert` and `measure` take them. identity: what fixes
    the figures, as JSON-able data, such as hashes of weights and data and how many images are taken: a result file
    whose figures have another one is refused. inputs: as in `convert`.
    """

    load: Callable[[], nn.Module]
    calibration: Callable[[int], Any]
    data: Callable[[int], Any]
    identity: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[[Any], Any] | None = None


def bench(
    bench: Bench,
    networks: Mapping[str, BenchNetwork],
    results: str | Path,
    *,
    only: Sequence[str] = (),
    retry: bool = False,
    group: ProcessGroup | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    each: Callable[[str], None] | None = None,
) -> Benched:
    """Measure every cell of a bench that a result file does not hold yet, and return all that it holds.

        bench = parspike.Bench("mine", T=(2, 4), methods=("closed-form", "max-norm"))
        network = parspike.BenchNetwork(lambda: model, lambda seed: images, lambda seed: items, {"data": "mine, 2026"})
        done = parspike.bench(bench, {"net": network}, "mine.jsonl")
        print(done); done.save("mine.tex")

    networks: by name; those that the bench's own tables name, where it has some. results: a file of JSON lines, made
    where there is none; each cell is a line in it as soon as it is measured, so a bench that is stopped goes on where
    it was. A cell that fails, as where a method does not fit the network, has a line with the reason, and the others go
    on; retry: such cells are tried again. only: names of networks, methods or neurons, or "T=4": the cells of these.
    For every number of levels that a cell has, the network itself is measured with activations rounded to as many.
    group: processes that share the cells (`torch.distributed.group.WORLD`), all calling this with the same arguments;
    the file must lie where all of them reach it. progress: called as progress(what, done, total), cells of all
    processes. each: called with a line of text for every cell of this process that is done.
    Raises `FileError` where another bench is writing the file, or where it holds figures of another bench or other
    data; `OptionError` for names that the bench does not have.
    """
    if not isinstance(bench, Bench):
        raise OptionError(f"bench takes what Bench.read(path) returned, got {str(bench)[:80]}")
    if not isinstance(networks, Mapping) or not all(isinstance(n, BenchNetwork) for n in networks.values()):
        raise OptionError(f"networks= must be a dict of BenchNetwork by name, got {str(networks)[:80]}")
    check_list(only, "only", str, "['T=4']")
    if bench.networks and (odd := [name for name in networks if name not in bench.networks]):
        raise OptionError(f"the bench has no network '{odd[0]}'{meant(odd[0], bench.networks)}")
    cells = bench.chosen(only, networks)
    together = Together(group)
    with ResultFile(path_of(results), bench.name, together) as file, torch.random.fork_rng():
        with together.one_fate():
            if together.rank == 0:
                for name in dict.fromkeys(cell.network for cell in cells):
                    file.measured_on(name, networks[name].identity)
        _Work(bench, networks, cells, file, retry, progress, each).run()
        together.exchange(None)  # so that what is returned holds the cells of all processes
        return Benched(bench, file.lines())


class _Work:
    """The cells that are not done, one after the other, beside other processes of the group."""

    def __init__(
        self, bench: Bench, networks: Mapping[str, BenchNetwork], cells: Sequence[Cell], file: ResultFile, retry: bool,
        progress: Callable[[str, int, int], None] | None, each: Callable[[str], None] | None,
    ) -> None:  # fmt: skip
        self.bench, self.networks, self.cells, self.file, self.retry = bench, networks, cells, file, retry
        self.progress = progress or (lambda what, done, total: None)
        self.each = each or (lambda line: None)
        self.tried: set[Cell | Reference] = set()
        self.loaded: _Loaded | None = None
        self.clock = Clock()

    def run(self) -> None:
        before = self.file.lines()
        self.failed = {key for key, line in {**before.cells, **before.references}.items() if "failed" in line}
        while (key := self._next()) is not None:
            start = time.perf_counter()
            line = self._line(key)
            device = None if self.loaded is None else self.loaded.device
            self.file.write({**line, "seconds_in_all": time.perf_counter() - start, **made_by(device)})
            lines = self.file.lines()
            done, total = self._state(lines)
            left = self.clock.left(key, time.perf_counter() - start, self._open(lines), self.file.together.size)
            self.each(f"{done}/{total} {key}: {told(line)}; {left}")
            self.progress(str(key), done, total)

    def _keys(self, lines: Lines) -> Iterator[Cell | Reference]:
        """All that belongs to the cells, network by network: these, then the levels that they turned out to have."""
        for network in dict.fromkeys(cell.network for cell in self.cells):
            mine = [cell for cell in self.cells if cell.network == network]
            yield from mine
            levels = {(line["levels"], cell.seed) for cell in mine if "levels" in (line := lines.cells.get(cell, {}))}
            yield from (Reference(network, number, seed) for number, seed in sorted(levels))

    def _open(self, lines: Lines) -> list[Cell | Reference]:
        """What is not done yet."""
        done = {key for key in (*lines.cells, *lines.references) if not (self.retry and key in self.failed)}
        return [key for key in self._keys(lines) if key not in done and key not in self.tried]

    def _state(self, lines: Lines) -> tuple[int, int]:
        total = sum(1 for _ in self._keys(lines))
        return total - len(self._open(lines)), total

    def _next(self) -> Cell | Reference | None:
        lines = self.file.lines()
        done, total = self._state(lines)
        for key in self._open(lines):
            self.tried.add(key)
            if self.file.claim(str([type(key).__name__, key.to_json()])):
                self.progress(str(key), done, total)
                return key
        return None

    def _line(self, key: Cell | Reference) -> dict[str, Any]:
        """What is written about a cell: its figures, or the one line that says why there are none."""
        name = {"cell" if isinstance(key, Cell) else "quantised": key.to_json()}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ParspikeWarning)  # every cell would repeat them
                if self.loaded is None or self.loaded.name != key.network:
                    self.loaded = None  # before the next one is there
                    self.loaded = _Loaded(key.network, self.networks[key.network])
                if isinstance(key, Cell):
                    return {**name, **_finite(self.loaded.cell(key, self.bench.recipe(key.method)))}
                return {**name, **_finite(self.loaded.reference(key))}
        except (Exception, SystemExit) as error:  # noqa: BLE001 (one cell that fails does not end the others)
            said = " ".join(str(error).split())
            return {**name, "failed": said if isinstance(error, ParspikeError) else f"{type(error).__name__}: {said}"}


class _Loaded:
    """A network in memory, with the data of the seed in work."""

    def __init__(self, name: str, source: BenchNetwork) -> None:
        self.name, self.source = name, source
        self.model = source.load().eval()
        self.device = next((tensor.device for tensor in self.model.state_dict().values()), torch.device("cpu"))
        self.seed: int | None = None
        self.made: Plan | None = None

    def _take(self, seed: int) -> tuple[Plan, Any, Held]:
        """The plan, the calibration batches and the items to measure on."""
        if self.seed != seed:
            self.seed = None
            torch.manual_seed(seed)  # loaders that shuffle draw from the global random state
            self.batches = readable_again(self.source.calibration(seed))
            self.items = readable_again(self.source.data(seed), name="data")
            try:
                first = next(iter(self.batches))
            except StopIteration:
                raise CalibrationError("the calibration set is empty: give at least one batch of inputs") from None
            if not any(True for _ in self.items):
                raise InputError("data is empty: give at least one batch of inputs")
            self.made = self.made or planned(self.model, first, self.source.inputs)
            self.held = Held(self.items, self.made, self.source.inputs)
            self.fitted_on = sum(len(next(iter(self.held.env(item).values()))) for item in self.batches)
            self.seed = seed
        return self.made, self.batches, self.held  # pyright: ignore[reportReturnType]

    def cell(self, cell: Cell, recipe: Recipe) -> dict[str, Any]:
        """The figures of a conversion."""
        made, batches, held = self._take(cell.seed)
        kind = recipe.makes or kind_named(cell.neuron)
        memory = Memory(self.device)
        ((snn, seconds),) = fitted(
            made, batches, [(cell.T, kind)], recipe=recipe, inputs=self.source.inputs, seed=cell.seed
        )
        memory_mib = memory.grown()
        report, scores = held.measured(snn)
        network, own = self.timed(snn, held)
        return {
            **shares(scores),
            "network_accuracy": percent(scores.network_accuracy),
            "steps": snn.simulation.total,
            "levels": levels_of(snn),
            "bits": bits_of(snn),
            "spikes": report.spikes_per_neuron,
            "synops": report.synops,
            "macs": report.macs,
            "energy_pj": report.energy_pj,
            "network_macs": report.network_macs,
            "network_energy_pj": report.network_energy_pj,
            "fit_seconds": seconds,
            "fit_memory_mib": memory_mib,
            "seconds_per_image": own,
            "network_seconds_per_image": network,
            "ratio": own / network,
            "images": report.samples,
            "calibration_images": self.fitted_on,
            "trained_for": "QCFS" if self._qcfs(made) else "",
        }

    def reference(self, key: Reference) -> dict[str, Any]:
        """The figures of the network with rounded activations. Levels and synapses are by the closed form, and the
        network's own where it was trained with as many levels."""
        made, batches, held = self._take(key.seed)
        setting = key.levels, Parallel("sorted")
        own = {a.levels for a in self._activations(made) if isinstance(a, Quantised)}
        recipe = DAQCFS() if self._qcfs(made) and own == {key.levels} else ClosedForm()
        ((snn, seconds),) = fitted(made, batches, [setting], recipe=recipe, inputs=self.source.inputs, seed=key.seed)
        scores = held.scores(quantised(snn))
        return {**shares(scores), "fit_seconds": seconds}

    @staticmethod
    def _activations(made: Plan) -> list[Any]:
        return [made.activation(node) for node in made.graph.neurons if node.name in made.spiking]

    def _qcfs(self, made: Plan) -> bool:
        """Whether the network was trained with QCFS activations alone."""
        found = self._activations(made)
        return bool(found) and all(isinstance(activation, Quantised) for activation in found)

    @torch.inference_mode()
    def timed(self, snn: SNN, held: Held) -> tuple[float, float]:
        """Seconds an image of the network itself and of the conversion, run in turn on the first item, so that what
        else the machine does meets both. Both have just run on items of this size."""
        env = held.env(next(iter(held.items)))
        args, kwargs = snn.graph.call_of(env)
        model, images = taking(self.model, args, kwargs), len(next(iter(env.values())))
        pairs: list[tuple[float, float]] = []
        model(*args, **kwargs)
        start = time.perf_counter()
        while not pairs or (spent := time.perf_counter() - start) < LEAST or (len(pairs) < ROUNDS and spent < MOST):
            pairs.append((_seconds(model, args, kwargs), _seconds(snn, args, kwargs)))
        ratios = sorted(pairs, key=lambda pair: pair[1] / pair[0])
        network, own = ratios[(len(ratios) - 1) // 2]
        return network / images, own / images


def _seconds(network: Callable[..., Any], args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> float:
    start = time.perf_counter()
    network(*args, **kwargs)
    if any(x.is_cuda for x in (*args, *kwargs.values())):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def levels_of(snn: SNN) -> int:
    """The outputs above its smallest one that a neuron can have over all T steps; of several layers the most."""
    found = (neuron.levels_in(snn.T) for neuron in snn.neurons().values())
    return max(found, default=0)


def bits_of(snn: SNN) -> float:
    """The bits that a neuron sends for an answer, mean over the neurons: in each of all steps that the answer costs the
    logarithm of how many different things it can send; of parallel neurons one bit in each of their own steps."""
    total = bits = 0.0
    for name, neuron in snn.neurons().items():
        size = math.prod(int(n) for n in snn.graph.shape_of(snn.graph.by_name[name])[1:])
        total, bits = total + size, bits + size * neuron.bits_in(snn.simulation.total)
    return bits / total if total else 0.0


def shares(scores: Scores) -> dict[str, Any]:
    """Accuracy, agreement and error in per cent, None where they say nothing."""
    return {name: percent(getattr(scores, name)) for name in ("accuracy", "agreement", "error")}


def percent(share: float | None) -> float | None:
    """Per cent of a share."""
    return None if share is None else 100 * share


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


class Clock:
    """How long the rest takes, from how long cells of each method took. Serial neurons take as long as their T."""

    def __init__(self) -> None:
        self.took: list[tuple[str, str, float]] = []

    def left(self, key: Cell | Reference, seconds: float, rest: Sequence[Cell | Reference], processes: int = 1) -> str:
        """After a cell that took so many seconds: the time that the rest needs, as text."""
        self.took.append((key.network, self._kind(key), seconds))
        need = sum(self._guess(key) for key in rest) / processes
        return f"about {duration(need)} left" if rest else "done"

    @staticmethod
    def _kind(key: Cell | Reference) -> str:
        return f"{key.method}, {key.neuron}, {key.T}" if isinstance(key, Cell) else "quantised"

    def _guess(self, key: Cell | Reference) -> float:
        kind = self._kind(key)
        exact = [s for network, other, s in self.took if (network, other) == (key.network, kind)]
        near = [s for network, _, s in self.took if network == key.network]
        return statistics.mean(exact or near or [s for *_, s in self.took])


def duration(seconds: float) -> str:
    """Seconds as text.

    >>> duration(42), duration(200), duration(9000)
    ('42 s', '3 min', '2.5 h')
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def told(line: Mapping[str, Any]) -> str:
    """A line of results in short."""
    if "failed" in line:
        return f"left out: {line['failed']}"
    name = next((n for n in ("accuracy", "agreement", "error") if line[n] is not None), "error")
    value = "" if line[name] is None else f"{name} {line[name]:.2f} %"
    return ", ".join(filter(None, (value, f"fit {line['fit_seconds']:.1f} s")))


def made_by(device: torch.device | None = None) -> dict[str, Any]:
    """What stands in every line: versions, commit, machine. device: where the network ran."""
    versions = {"parspike": __version__, "torch": torch.__version__}
    return {"versions": versions, "commit": commit(), "machine": machine(device)}


@lru_cache
def commit() -> str | None:
    """The commit of the git checkout that this package runs from, with "-dirty" where files of the package were
    changed (others, such as one that results are written into, do not count); None where it runs from no checkout."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # a checkout may hold an installed package
        named = git("describe", "--always", "--exclude=*", "--abbrev=12")
        return f"{named}-dirty" if git("status", "--porcelain", "--", "..") else named
    except (OSError, subprocess.SubprocessError):
        return None


def machine(device: torch.device | None = None) -> str:
    """Processor, threads, and the GPU where the network ran on one."""
    gpu = [torch.cuda.get_device_name(device)] if device is not None and device.type == "cuda" else []
    return ", ".join((platform.machine(), f"{torch.get_num_threads()} threads", *gpu))


class Memory:
    """How far the memory of this process grows from now on, as Linux counts it; on a GPU the memory of torch's tensors
    there."""

    def __init__(self, device: torch.device | None = None) -> None:
        gc.collect()
        self.before: float | None = None
        self.gpu = device if device is not None and device.type == "cuda" else None
        if self.gpu is not None:
            torch.cuda.reset_peak_memory_stats(self.gpu)
            self.before = torch.cuda.memory_allocated(self.gpu) / MIB
            return
        release()  # what was freed before is not there to be used again, unseen
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the largest size is counted anew
            self.before = self._status("VmRSS")
        except (OSError, StopIteration):
            return

    def grown(self) -> float | None:
        """MiB by which the largest size since then exceeds the size at the beginning; None where nobody counts it."""
        if self.gpu is not None and self.before is not None:
            return torch.cuda.max_memory_allocated(self.gpu) / MIB - self.before
        try:
            return None if self.before is None else max(0.0, self._status("VmHWM") - self.before)
        except (OSError, StopIteration):
            return None

    @staticmethod
    def _status(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))
