"""`snn.plot`: the figures of a network, each made of what it needs and drawn into axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from parspike.calibrate.batches import arguments_of, inputs_of, readable_again
from parspike.errors import InputError
from parspike.graph import Graph
from parspike.measure import Report, measure
from parspike.plan import Plan, plan_again
from parspike.report import figures
from parspike.report.answers import answers
from parspike.report.timing import times
from parspike.report.trains import chosen, trains
from parspike.sweep import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from parspike.snn import SNN

__all__ = ["Plots", "plan_of"]


class Plots:
    """Figures of one network as matplotlib axes; `snn.plot` makes it.

        axes = snn.plot.accuracy(items, model=model)
        axes.figure.savefig("accuracy.pdf")

    data: as for `parspike.measure`, or for `error`, `rates` and `energy` the `Report` that it returned, so that nothing
    is measured twice. model: the network that was converted, or its plan. inputs: a function from an item to the
    inputs. ax: axes to draw into; without them a new figure is made (`axes.figure`). Every method returns the axes, and
    raises `MissingExtraError` without matplotlib and `InputError` where its figure cannot be known.
    """

    def __init__(self, snn: SNN) -> None:
        self._snn = snn

    def accuracy(
        self, data: Any, *, model: nn.Module | Plan | None = None, inputs: Callable[[Any], Any] | None = None,
        ax: Axes | None = None,
    ) -> Axes:  # fmt: skip
        """The accuracy (without labels the agreement with `model`, of values the error) of the network itself, of the
        one quantised to as many levels, and of the spiking network: after every time-step, where neurons have a state;
        against T, where `data` is what `parspike.sweep` returned; else as a point for each."""
        if isinstance(data, Sweep):
            return figures.sweep(data, ax)
        source = readable_again(data, name="data")
        found = answers(self._snn, source, reference=self._reference(model, source, inputs), inputs=inputs)
        return figures.steps(found, ax) if found.steps else figures.accuracy(found, ax)

    def error(
        self, data: Any, *, model: nn.Module | Plan | None = None, inputs: Callable[[Any], Any] | None = None,
        ax: Axes | None = None,
    ) -> Axes:  # fmt: skip
        """The relative error of every layer of neurons and of the outputs against `model`."""
        return figures.error(self._report(data, model, inputs), ax)

    def rates(self, data: Any, *, inputs: Callable[[Any], Any] | None = None, ax: Axes | None = None) -> Axes:
        """Spikes of a neuron in a time-step, by layer."""
        return figures.rates(self._report(data, None, inputs), ax)

    def energy(self, data: Any, *, inputs: Callable[[Any], Any] | None = None, ax: Axes | None = None) -> Axes:
        """Estimated energy of one sample, arithmetic alone, beside that of the network itself."""
        return figures.energy(self._report(data, None, inputs), ax)

    def raster(
        self, item: Any, layer: str | None = None, *, neurons: int = 48, inputs: Callable[[Any], Any] | None = None,
        ax: Axes | None = None,
    ) -> Axes:  # fmt: skip
        """The spikes of some neurons of a layer (default: the middle one) for the first sample of `item`, one item of
        data. layer: its name, or a pattern that means one layer. neurons: how many, evenly spaced in the layer."""
        names = chosen(self._snn, None if layer is None else [layer])
        if not names:
            raise InputError("this network has no spiking neurons")
        if layer is not None and len(names) > 1:
            few = ", ".join(self._snn.graph.by_name[name].layer for name in names[:3])
            raise InputError(f"'{layer}' means {len(names)} layers ({few} …), and one is drawn: name one")
        env = inputs_of(item, "the item", self._snn, inputs)
        (train,) = trains(self._snn, env, [names[len(names) // 2]], neurons=neurons)
        return figures.raster(train, ax)

    def time(
        self, item: Any, *, model: nn.Module | None = None, seconds: float = 8.0,
        inputs: Callable[[Any], Any] | None = None, ax: Axes | None = None,
    ) -> Axes:  # fmt: skip
        """Milliseconds of one sample on this machine against T, of every engine and of `model`, run in turn for about
        `seconds` on some samples of `item`."""
        env = inputs_of(item, "the item", self._snn, inputs)
        return figures.time(times(self._snn, env, model=model, seconds=seconds), ax)

    def _report(self, data: Any, model: Any, inputs: Any) -> Report:
        return data if isinstance(data, Report) else measure(self._snn, data, against=model, inputs=inputs)

    def _reference(self, model: nn.Module | Plan | None, source: Any, inputs: Any) -> Graph | None:
        return None if model is None else plan_of(model, self._snn, source, inputs).graph

    def __repr__(self) -> str:
        names: Sequence[str] = [name for name in vars(Plots) if not name.startswith("_")]
        return f"figures: {', '.join(names)}"


def plan_of(model: nn.Module | Plan, snn: SNN, source: Any, inputs: Callable[[Any], Any] | None) -> Plan:
    """The plan of the network to compare with, made with the first item of the data."""
    if isinstance(model, Plan):
        return model
    for item in source:
        return plan_again(model, arguments_of(item, "batch 0 of the data", inputs, snn.graph.signature), snn.provenance)
    raise InputError("the data are empty: give at least one batch of inputs")
