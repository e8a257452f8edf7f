"""What the page shows, as tensors: the trains of one input in every layer, and the answer after every step.

**The answer over time.** Neurons with a state (IF, LIF): the output of the network after t steps, the mean of its
output so far; had it been stopped there, this would be its answer. Parallel neurons see the mean of their input over
all T steps before they send their first spike, so no such network can be stopped after t steps. What is shown for them
is what the first t steps of the trains that the output is read from say: the read-out of their mean current so far. How
a network answers with fewer steps is another question, which only one that was converted for them answers (`by_T`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parspike.calibrate.batches import inputs_of, labels_of, readable_again
from parspike.engines import Run
from parspike.engines.folded import fold, repeat
from parspike.errors import InputError, OptionError
from parspike.graph import Graph, Schedule, Stream, leaves, walk
from parspike.graph.opened import taking
from parspike.snn import SNN

__all__ = ["Item", "Scene", "Shown", "answers_by_step"]

KEPT = 8
"""Runs that are kept, so that moving the time runs nothing."""


@dataclass(frozen=True)
class Item:
    """An input. env: by the names of its network's inputs, a batch of one. label: None where there is none. name: of
    its file. picture: (H, W) or (H, W, 3), 0 … 1; None where it is no image."""

    given: Any
    label: int | None
    name: str
    picture: np.ndarray | None


@dataclass(frozen=True)
class Shown:
    """One network on one input. answers: what it says after each step, (T, K). classes: whether the K values are scores
    of classes. run: with the trains."""

    snn: SNN
    answers: Tensor
    classes: bool
    run: Run

    @property
    def T(self) -> int:
        """Time-steps."""
        return self.snn.T

    def answer(self, t: int) -> int:
        """The class with the highest score after t steps."""
        return int(self.answers[min(t, self.T) - 1].argmax())

    def train(self, layer: str) -> np.ndarray:
        """The train of a layer, (T, …) of one sample, int32; steps that its neurons do not use are silent."""
        node = next(node for node in self.snn.graph.neurons if node.layer == layer)
        train = self.run.spikes[layer].select((node.batch_dim or 0) + 1, 0).cpu().numpy().astype(np.int32)
        return np.concatenate([train, np.zeros((self.T - len(train), *train.shape[1:]), np.int32)])


@dataclass
class Scene:
    """Networks and inputs. networks: by the name that is shown, each in the forms that it was converted to by T, one at
    least. model: the network that they come from, where it is known."""

    networks: Mapping[str, Mapping[int, SNN]]
    items: Sequence[Item]
    model: nn.Module | None = None
    classes: Mapping[int, str] = field(default_factory=dict)
    _kept: OrderedDict[tuple[str, int, int], Shown] = field(default_factory=OrderedDict, repr=False)

    def shown(self, network: str, T: int, item: int) -> Shown:
        """A network's run on an input; the last few are kept."""
        key = (network, T, item)
        if key not in self._kept:
            snn = self.networks[network][T]
            env = inputs_of(self.items[item].given, f"input {item}", snn)
            self._kept[key] = run_on(snn, env)
            while len(self._kept) > KEPT * len(self.networks):
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def network_answer(self, item: int) -> int | None:
        """The answer of the network that they come from."""
        if self.model is None:
            return None
        snn = next(iter(next(iter(self.networks.values())).values()))
        env = inputs_of(self.items[item].given, f"input {item}", snn)
        args, kwargs = snn.graph.call_of(env)
        try:
            with torch.inference_mode():
                output = taking(self.model, args, kwargs)(*args, **kwargs)
        except Exception as error:  # any error of foreign code
            said = (str(error).splitlines() or [type(error).__name__])[0]
            shapes = ", ".join(str(tuple(x.shape)) for x in env.values())
            raise InputError(
                f"the network itself (model=, --against) fails on inputs {shapes}, which the converted one takes: "
                f"{said}. Is it the network that it was made from?"
            ) from error
        found, classes = _flat(output)
        return int(found[0].argmax()) if classes else None

    def called(self, number: int) -> str:
        """A class by its number, and its name where it has one."""
        name = self.classes.get(number)
        return str(number) if name is None else f"{number} {name}"


def scene_of(
    networks: Any, items: Any, model: nn.Module | None, by_T: Mapping[int, SNN] | None, most: int,
    names: Sequence[str] | None, classes: Mapping[int, str] | None, picture: Callable[[Tensor], Tensor] | None,
) -> Scene:  # fmt: skip
    """The scene of what `view` is given, checked: every network, and the model, runs on the first
    input."""
    given = networks if isinstance(networks, Mapping) else {"network": networks}
    if not given or not all(isinstance(snn, SNN) for snn in [*given.values(), *(by_T or {}).values()]):
        raise InputError("view takes a converted network, or several by name: parspike.convert makes them")
    if any(T != snn.T for T, snn in (by_T or {}).items()):
        raise OptionError("by_T holds networks by their own T, such as {4: parspike.convert(…, T=4)}")
    made = {str(name): {snn.T: snn} for name, snn in given.items()}
    if by_T:
        made[f"converted for T = {', '.join(str(T) for T in sorted(by_T))}"] = dict(sorted(by_T.items()))
    for name, forms in made.items():
        if not all(snn.neurons() for snn in forms.values()):
            raise InputError(f"'{name}' has no spiking neurons: there is nothing to watch")
    first = next(iter(next(iter(made.values())).values()))
    found = _items(items, first.graph, most, names, picture)
    scene = Scene(made, found, model, dict(classes or {}))
    for name, forms in made.items():
        for T in forms:
            try:
                scene.shown(name, T, 0)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
    scene.network_answer(0)
    return scene


def _items(
    source: Any, graph: Graph, most: int, names: Sequence[str] | None, picture: Callable[[Tensor], Tensor] | None
) -> list[Item]:
    """The first `most` samples of batches."""
    found: list[Item] = []
    count, keywords = graph.signature
    for number, batch in enumerate(readable_again(source, name="items")):
        env = inputs_of(batch, f"batch {number} of the items", graph)
        labels = labels_of(batch, None, graph.signature)
        inputs = [env[i.name] for i in graph.inputs]
        for sample in range(len(inputs[0])):
            ones = [x[sample : sample + 1].clone() for x in inputs]
            given: Any = tuple(ones[:count])
            if keywords:
                given = dict(zip(keywords, ones[count:], strict=True))
            whole = labels is not None and labels.dim() == 1 and not labels.is_floating_point()
            label = int(labels[sample]) if whole and labels is not None else None
            name = names[len(found)] if names is not None and len(found) < len(names) else ""
            found.append(Item(given, label, name, _picture(ones[0][0], picture)))
            if len(found) == most:
                return found
    if not found:
        raise InputError("there are no items: give at least one batch of inputs")
    return found


def _picture(x: Tensor, how: Callable[[Tensor], Tensor] | None) -> np.ndarray | None:
    """An input (C, H, W) with one or three channels as an image; else None."""
    if x.dim() != 3 or x.shape[0] not in (1, 3) or not x.is_floating_point():
        return None
    shown = x.detach().cpu().float() if how is None else how(x.detach().cpu().float())
    if how is None:
        low, high = shown.min(), shown.max()
        shown = (shown - low) / (high - low) if high > low else torch.zeros_like(shown)
    image = shown.clamp(0, 1).permute(1, 2, 0).numpy()
    return image[..., 0] if image.shape[2] == 1 else image


@torch.no_grad()
def run_on(snn: SNN, env: Mapping[str, Tensor]) -> Shown:
    """A network on one input (1, …), with its answer after every step."""
    count, keywords = snn.graph.signature
    values = [env[i.name] for i in snn.graph.inputs]
    options: dict[str, Any] = {"record": True, **dict(zip(keywords, values[count:], strict=True))}
    run = snn.run(*values[:count], every_step=snn.over_time, **options)
    if snn.over_time:
        # The logits of every step are (T, 1, …), where those of a batch are (B, …).
        first = next((leaf for leaf in leaves(run.logits) if isinstance(leaf, Tensor)), None)
        answers, classes = _flat(None if first is None else first.squeeze(1))
    else:
        answers, classes = _flat(answers_by_step(snn, env, run))
    return Shown(snn, answers, classes, run)


def answers_by_step(snn: SNN, env: Mapping[str, Tensor], run: Run) -> Any:
    """What the trains of parallel neurons say up to each step: the output, its batch (T, …), for one input (1, …).

    Neurons that the output is read from send their mean current of the steps so far; all in front of them is as it was.
    The last is the output of the network.
    """
    graph, neurons, T = snn.graph, snn.counting(), snn.T
    wanted, needed, seeds = list(graph.outputs), set[str](), set[str]()
    while wanted:
        name = wanted.pop()
        if name in neurons or name not in graph.by_name:
            seeds.add(name)
        elif name not in needed:
            needed.add(name)
            wanted.extend(graph.by_name[name].refs)
    start = {name: repeat(x, T, 0) for name, x in env.items()}
    stream = Stream(start, snn.tensors(), graph.sizes(start))
    for name in seeds & set(neurons):
        node = graph.by_name[name]
        current = neurons[name].current(run.counts[node.layer], 0, T, T)
        steps = torch.arange(1, T + 1, device=current.device).reshape(-1, *[1] * (current.dim() - 1))
        stream.env[name] = fold(current.cumsum(0) / steps, node.batch_dim or 0)
    nodes = [node for node in graph.nodes if node.name in needed]
    walk(Schedule.of(nodes, graph.outputs, seeds=tuple(stream.env)), [stream])
    return graph.collect(stream.env, graph.sizes(env))


def _flat(output: Any) -> tuple[Tensor, bool]:
    """The first tensor of an output as (B, K), and whether it is scores of classes."""
    first = next((leaf for leaf in leaves(output) if isinstance(leaf, Tensor)), None)
    if first is None:
        raise InputError("the output of this network holds no tensor: there is no answer to show")
    values = first.detach().cpu().float().flatten(1) if first.dim() > 1 else first.detach().cpu().float()[:, None]
    return values, first.dim() == 2 and first.shape[1] > 1 and first.is_floating_point()
