"""`parspike bench speed`: what a run costs beside the network itself, at any T, in every engine.

All are called in turn, round after round, so that what else the machine does meets all alike; a ratio is formed within
a round, and the median of the ratios is told with the smallest and the largest.
"""

from __future__ import annotations

import copy
import importlib
import platform
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from parspike.bench.run import Memory
from parspike.calibrate import Thresholds
from parspike.convert import convert
from parspike.errors import InputError, OptionError, UnsupportedError, check_list
from parspike.graph import on_device_of
from parspike.graph.encode import Encode
from parspike.graph.ir import expected_tensor
from parspike.lower import integers
from parspike.notebook import html_table
from parspike.snn import SNN
from parspike.tables import COLOURS, MARKERS, Table, comma_separated, content, new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ENGINES", "Speed", "SpeedRow", "speed"]

ENGINES = ("count", "packed", "compiled", "integer", "parallel", "serial", "serial-if")
SLOW = ("parallel", "serial", "serial-if")
"""Whose cost grows with T: they are measured in one round of three."""
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COUNTED = 0.5
"""Seconds over which a GPU's energy is counted."""


@dataclass(frozen=True)
class SpeedRow:
    """What one way to run costs.

    run: "network", "network, compiled", the engine, or a name of `beside`. T: time-steps, 0 for the network. seconds:
    of a batch, the median of the rounds. ratio, least, most: seconds / the network's of the same round, the median,
    smallest and largest. to_compiled: the median ratio to the compiled network, where it ran. samples: a second.
    latency: seconds of a batch of one, the median. memory_mib: by how much memory grows at most during a batch behind
    others: on a GPU that of torch's tensors, else that of this process, None where the system does not count it.
    joules: of a sample, as the GPU counts its energy, what it takes at rest included; None without a GPU.
    """

    run: str
    T: int
    seconds: float
    ratio: float
    least: float
    most: float
    samples: float
    latency: float
    to_compiled: float | None = None
    memory_mib: float | None = None
    joules: float | None = None


@dataclass(frozen=True)
class Speed:
    """The rows of one run of `speed`, the network first. machine: processor, threads, torch. left_out: what could not
    run, and why. `str` is a table."""

    rows: tuple[SpeedRow, ...]
    batch: int
    shape: tuple[int, ...]
    rounds: int
    machine: str
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows], "shape": list(self.shape),
                "left_out": list(self.left_out)}  # fmt: skip

    def _table(self) -> Table:
        head = ["run", "T", "ratio", "least … most", "samples/s", "latency, ms"]
        rows = [
            [row.run, str(row.T) if row.T else "–", f"{row.ratio:.2f}", f"{row.least:.2f} … {row.most:.2f}",
             f"{row.samples:.3g}", f"{1000 * row.latency:.3g}"]
            for row in self.rows
        ]  # fmt: skip
        for name, title in (("to_compiled", "/ compiled"), ("memory_mib", "memory, MiB"), ("joules", "J/sample")):
            values = [getattr(row, name) for row in self.rows]
            if any(value is not None for value in values):
                head.append(title)
                for cells, value in zip(rows, values, strict=True):
                    cells.append("–" if value is None else f"{value:.2f}" if name == "to_compiled" else f"{value:.3g}")
        sizes = "×".join(map(str, self.shape))
        remarks = [
            f"ratio: to the network's time in the same round, median of {self.rounds}; batch {self.batch} of {sizes}",
            self.machine,
        ]
        return Table(head, rows, frozenset({"run"}), (*remarks, *(f"left out: {line}" for line in self.left_out)))

    def markdown(self) -> str:
        """A table in Markdown, and the remarks below it."""
        return self._table().markdown()

    def figure(self) -> Figure:
        """Time against T, in units of the network's. Raises `MissingExtraError` without matplotlib."""
        made = new_figure(6.5, 4)
        axes = made.subplots()
        engines = list(dict.fromkeys(row.run for row in self.rows if row.T))
        for number, engine in enumerate(engines):
            rows = [row for row in self.rows if row.run == engine]
            low = [row.ratio - row.least for row in rows]
            high = [row.most - row.ratio for row in rows]
            axes.errorbar(
                [row.T for row in rows], [row.ratio for row in rows], yerr=[low, high], capsize=2, label=engine,
                color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)],
            )  # fmt: skip
        for row in self.rows:
            if not row.T:
                axes.axhline(row.ratio, color="black", linestyle="-" if row.run == "network" else ":", label=row.run)
        steps = sorted({row.T for row in self.rows if row.T})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(steps, [str(T) for T in steps])
        axes.minorticks_off()
        axes.set_xlabel("time-steps T")
        axes.set_ylabel("time / the network's")
        axes.legend(fontsize="small")
        return made

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the rows into a file whose ending says how: .csv, .json, .md, .tex, or a figure as .png, .svg, .pdf."""
        return save(path, lambda suffix: content(self, suffix), force=force, example="speed.csv")

    def csv(self) -> str:
        """All rows as comma-separated values."""
        return comma_separated([f.name for f in fields(SpeedRow)], map(asdict, self.rows))

    def latex(self) -> str:
        """The table as LaTeX."""
        return self._table().latex()

    def _repr_html_(self) -> str:
        table = self._table()
        return html_table("Speed", table.head, table.rows, table.remarks)

    def __str__(self) -> str:
        return str(self._table())


@torch.no_grad()
def speed(
    model: nn.Module, x: Tensor, *, T: Sequence[int] = (4, 32, 256), engines: Sequence[str] = ("count",),
    compiled: bool = False, rounds: int = 7, cpu_time: bool = False, precision: str = "float32",
    channels_last: bool = False, encode: Encode = "none",
    beside: Mapping[tuple[str, int], Callable[[Tensor], object]] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Speed:  # fmt: skip
    """Time, latency, memory, and on a GPU energy, of a network and of its conversions, in one run.

    x: a batch (B, …); thresholds are its largest currents, since weights and thresholds do not change what a run costs.
    engines: of "count", "packed" (count, with all trains kept as bits), "compiled" (`snn.compile()`), "integer" (in
    whole numbers of 8 bits), "parallel", "serial" and "serial-if"; the last three take as many passes as there are
    time-steps and are measured in every third round.
    compiled: also the network under torch.compile. cpu_time: seconds are those that this process computed, all threads
    together: on a machine that others use too, with one thread. precision: "bfloat16" or "float16" runs all under
    `torch.autocast`, the network too; whole numbers are as before. channels_last: images in memory as (B, H, W, C), for
    all. encode: as for `convert`: neurons also where synapses read real values. beside: more calls, by name and T (0
    for none), such as another library's network; each takes the batch, and is measured in every third round where T is
    above 0.
    Raises `OptionError` on an unknown engine or precision, a T or a number of rounds below 1, `InputError` where x is
    no tensor, and what `convert` raises.
    """
    check_list(engines, "engines", str, "('count', 'parallel')")
    check_list(T, "T", int, "(4, 32)")
    for engine in engines:
        if engine not in ENGINES:
            raise OptionError(f"engine '{engine}' is unknown: choose one of {', '.join(ENGINES)}")
    for name, numbers in (("T", T), ("rounds", (rounds,))):
        if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
            raise OptionError(f"{name} must be whole numbers of at least 1, got {numbers!r}")
    if precision not in PRECISIONS:
        raise OptionError(f"precision '{precision}' is unknown: choose one of {', '.join(PRECISIONS)}")
    if not isinstance(x, Tensor):
        raise InputError(f"x is {type(x).__name__}, {expected_tensor(x)}")
    if channels_last and x.ndim != 4:
        raise OptionError(f"channels_last is for batches of images (B, C, H, W), and this one is {tuple(x.shape)}")
    if isinstance(model, nn.Module):
        x = on_device_of(model.parameters(), x)
    if isinstance(model, nn.Module) and model.training:
        model = copy.deepcopy(model).eval()  # the user's goes on in the mode that it is in
    if channels_last:
        model, x = _channels_last(copy.deepcopy(model)), x.contiguous(memory_format=torch.channels_last)
    calls: dict[tuple[str, int], Callable[[Tensor], object]] = {("network", 0): model}
    if compiled:
        calls["network, compiled", 0] = torch.compile(model)
    left_out: list[str] = []
    for steps in T:
        snn = convert(model, x, T=steps, recipe=Thresholds(mode="max"), encode=encode)
        calls |= _engines(_channels_last(snn) if channels_last else snn, x, engines, left_out)
    slow = [key for key in calls if key[0] in SLOW] + [key for key in beside or () if key[1]]
    calls |= beside or {}
    clock = time.process_time if cpu_time else time.perf_counter
    autocast = torch.autocast(x.device.type, PRECISIONS[precision], enabled=precision != "float32")
    with autocast:
        times = _interleaved(calls, slow, x, rounds, clock, progress)
        single = _interleaved(calls, slow, x[:1], min(rounds, 3), clock, progress)
        cost = {key: _cost(call, x) for key, call in calls.items()}
    rows = []
    for key, now in times.items():
        ratios = _ratios(now, times["network", 0])
        own = _ratios(now, times["network, compiled", 0]) if compiled and "compiled" in key[0] else ()
        seconds = statistics.median(now.values())
        rows.append(
            SpeedRow(*key, seconds, statistics.median(ratios), ratios[0], ratios[-1], len(x) / seconds,
                     statistics.median(single[key].values()), statistics.median(own) if own else None, *cost[key])
        )  # fmt: skip
    words = (
        (precision, precision != "float32"),
        ("channels last", channels_last),
        (f"encode={encode!r}", encode != "none"),
    )
    how = [word for word, said in words if said]
    machine = ", ".join((_machine(x.device, cpu_time), *how))
    return Speed(tuple(rows), len(x), tuple(x.shape[1:]), rounds, machine, tuple(left_out))


def _channels_last(network: Any) -> Any:
    return network.to(memory_format=torch.channels_last)


def _ratios(times: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """Seconds over another call's seconds in the same round, from the smallest on."""
    return sorted(seconds / base[number] for number, seconds in times.items())


def _cost(call: Callable[[Tensor], object], x: Tensor) -> tuple[float | None, float | None]:
    """MiB by which memory grows at most during a batch, and joules of a sample: what the GPU has counted over half a
    second of batches, None where `pynvml` is not installed or the GPU does not count."""
    call(x)
    memory = Memory(x.device)
    call(x)
    if not x.is_cuda:
        return memory.grown(), None
    torch.cuda.synchronize(x.device)
    grown = memory.grown() or 0.0
    try:
        pynvml = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(x.device).uuid}")
        before, batches, start = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu), 0, time.perf_counter()
        while time.perf_counter() - start < COUNTED:
            call(x)
            torch.cuda.synchronize(x.device)
            batches += 1
        spent = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) - before  # in thousandths of a joule
    except Exception:  # noqa: BLE001 (a driver without such a counter raises errors of pynvml's own)
        return grown, None
    return grown, spent / 1000 / batches / len(x)


def _engines(
    snn: SNN, x: Tensor, engines: Sequence[str], left_out: list[str]
) -> Mapping[tuple[str, int], Callable[[Tensor], object]]:
    """Ways to run a network, by name and T."""
    found: dict[tuple[str, int], Callable[[Tensor], object]] = {}
    for engine in engines:
        how: dict[str, Any] = {"engine": engine}
        made = snn
        if engine == "packed":
            how = {"record": "packed"}
        elif engine == "compiled":
            made, how = copy.deepcopy(snn).compile(), {}
        elif engine == "integer":
            try:
                made = integers(snn, x, refit=False)
            except UnsupportedError as error:
                first, *_, last = str(error).splitlines()
                left_out.append(f"integer, T={snn.T}: {first} {last.strip()}")
                continue
        found[engine, snn.T] = lambda y, made=made, how=how: made.run(y, **how)
    return found


def _interleaved(
    calls: Mapping[tuple[str, int], Callable[[Tensor], object]], slow: Collection[tuple[str, int]], x: Tensor,
    rounds: int, clock: Callable[[], float], progress: Callable[[str, int, int], None] | None,
) -> dict[tuple[str, int], dict[int, float]]:  # fmt: skip
    """Seconds of every call by round. Each is called before, once or more, and then in turn."""
    times: dict[tuple[str, int], dict[int, float]] = {key: {} for key in calls}
    # On a GPU the first runs compile kernels and record them; a compiled SNN marks the batch's size as free, and then
    # the compiled network is compiled once more.
    before = 3 if x.is_cuda else 2
    for number in range(-before, rounds):
        for key, call in calls.items():
            if key in slow and number % 3 and number != -1:
                continue
            start = clock()
            call(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            if number >= 0:
                times[key][number] = clock() - start
        if progress is not None:
            progress(f"batch {len(x)}", number + before + 1, rounds + before)
    return times


def _machine(device: torch.device, cpu_time: bool) -> str:
    """Processor or GPU, threads, kernels, torch and the clock, in one line."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    kernels = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {torch.get_num_threads()} threads, {kernels}, torch {torch.__version__}" + (
        ", seconds of the process" if cpu_time else ""
    )
