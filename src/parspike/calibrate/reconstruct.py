"""Gradient steps without labels: the student learns the teacher's activations and outputs.

Weights, biases, thresholds, shifts and amplitudes move, and the outputs of free steps; the staircase passes its
gradient straight through (equation (9)). It starts from the closed form and ends with the best state that held-out
calibration images have seen, the start among them, so it never ends worse than it began on those.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from parspike.calibrate.batches import Batches
from parspike.calibrate.channels import unit_of
from parspike.calibrate.distance import Distance, apart, relative_error
from parspike.calibrate.layerwise import ClosedForm
from parspike.calibrate.recipe import Draft, Recipe, check_number, check_switch
from parspike.calibrate.student import OverTime
from parspike.calibrate.thresholds import Weigh, check_weigh
from parspike.errors import CalibrationError, FileError, OptionError
from parspike.graph import Node
from parspike.neurons import IntegrateFire, ParallelNeuron, Staircase, levels_of
from parspike.together import Together
from parspike.whole import write_whole

__all__ = ["Reconstruct"]


@dataclass(frozen=True)
class Reconstruct(Recipe):
    """Closed form, then `steps` gradient steps on unlabelled calibration images.

    batch_size: images a step. rate: step size as a share of a tensor's root mean square (Adam, cosine to 0), up to two
    levels; of S levels (2/S)² of it, since the closer a student starts to the teacher, the smaller the steps that spoil
    it. augment: "none", or "flip" and "crop" for images that may be mirrored, or also shifted by up to an eighth.
    held_out: share of the images that choose the best state. features: weight of the activations' error beside the
    outputs'. weigh, free: those of the closed form it starts from. checkpoint: a file to resume from after a break
    ("" for none).
    """

    name: ClassVar[str] = "reconstruct"
    steps: int = 1600
    batch_size: int = 16
    rate: float = 0.005
    augment: Literal["none", "flip", "crop"] = "none"
    held_out: float = 0.1
    features: float = 0.1
    weigh: Weigh = "next"
    checkpoint: str = ""
    free: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"{name} must be an integer of at least 1, got {value!r}")
        check_number(self.held_out, "held_out", 0, 1)
        if self.held_out == 1:
            raise OptionError("held_out = 1 leaves no image to fit to: give a share below 1")
        check_number(self.rate, "rate", 0, sys.float_info.max)
        check_number(self.features, "features", 0, sys.float_info.max, low_too=True)
        check_switch(self.free, "free")
        if not isinstance(self.checkpoint, str):
            raise OptionError(f"checkpoint must be the name of a file as text, or '', got {self.checkpoint!r}")
        check_weigh(self.weigh)
        if self.augment not in ("none", "flip", "crop"):
            raise OptionError(f"augment must be 'none', 'flip' or 'crop', got {self.augment!r}")

    def fit(self, draft: Draft, batches: Batches | None) -> None:
        ClosedForm(weigh=self.weigh, free=self.free).fit(draft, batches)
        if batches is None:
            return
        images = _Images(batches, self.held_out, self.batch_size)
        trained = _Trained(draft)
        with torch.enable_grad():
            self._train(draft, images, trained, batches.together)

    def _train(self, draft: Draft, images: _Images, trained: _Trained, together: Together) -> None:
        rate = self.rate * min(1.0, (2 / levels_of(draft.T, draft.code)) ** 2)
        sizes = trained.sizes()
        groups = [{"params": [p], "lr": rate * size, "initial": rate * size} for p, size in sizes]
        # Adam takes roots of squares: a gradient is measured in the tensor's own unit, as its steps are.
        units = [(p, float(unit_of(torch.tensor(size, dtype=torch.float64)))) for p, size in sizes]
        optimiser = torch.optim.Adam(groups)
        distance = _Loss(draft, self.features)
        best, best_loss = trained.state(), distance.held_out(images)
        start = 0
        path = Path(self.checkpoint) if self.checkpoint else None
        # Every process takes the same steps; the first one keeps the checkpoint, and says what was in it.
        found = path if path is not None and together.rank == 0 and path.is_file() else None
        with together.one_fate():
            saved = together.first(found and _read(found))
        if saved is not None:
            try:
                trained.restore(saved["now"])
                optimiser.load_state_dict(saved["optimiser"])
                best, best_loss, start = saved["best"], saved["best_loss"], saved["step"]
            except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
                raise FileError(
                    f"{path}: it is no checkpoint of this reconstruction ({str(error)[:200]}): give another name"
                ) from error
        every = max(10, self.steps // 10)
        for step in range(start, self.steps):
            for group in optimiser.param_groups:
                warm = min(1.0, (step + 1) / 20)
                group["lr"] = group["initial"] * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            # The step's own seed, so that a resumed run draws what the broken one would have drawn.
            generator = torch.Generator().manual_seed(torch.initial_seed() % 2**31 + step)
            loss = distance(images.draw(generator, self.augment))
            if not math.isfinite(loss.item()):
                break
            optimiser.zero_grad()
            loss.backward()
            for parameter, unit in units:
                if parameter.grad is not None and unit != 1:
                    parameter.grad.mul_(unit)
            optimiser.step()
            trained.keep_valid()
            draft.progress("reconstruction", step + 1, self.steps)
            if (step + 1) % every == 0 or step + 1 == self.steps:
                trained.settle()
                now = distance.held_out(images)
                if now < best_loss:
                    best, best_loss = trained.state(), now
                if path is not None and together.rank == 0:
                    content = {"now": trained.state(), "best": best, "best_loss": best_loss, "step": step + 1}
                    stream = io.BytesIO()
                    torch.save({**content, "optimiser": optimiser.state_dict()}, stream)
                    write_whole(path, [stream.getbuffer()])
        trained.restore(best)
        trained.freeze()


def _read(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds on what it did not write
        raise FileError(f"{path}: not a readable checkpoint of a reconstruction: delete it, or give another") from error


class _Images:
    """The calibration images, those of one size together, the held-out ones apart."""

    def __init__(self, batches: Batches, held_out: float, batch_size: int) -> None:
        alike: dict[Any, list[dict[str, Tensor]]] = {}
        for part in batches.everywhere():
            alike.setdefault(tuple(x.shape[1:] for x in part.values()), []).append(part)
        self.groups = [{name: torch.cat([p[name] for p in parts]) for name in parts[0]} for parts in alike.values()]
        counts = [len(next(iter(group.values()))) for group in self.groups]
        if sum(counts) < 4:
            raise CalibrationError(f"{sum(counts)} calibration images are too few to hold some out: give at least 4")
        every = max(2, round(1 / held_out))
        out = torch.arange(sum(counts)) % every == every - 1
        self.out = [part.nonzero().flatten() for part in out.split(counts)]
        self.kept = [part.nonzero().flatten() for part in (~out).split(counts)]
        self.batch_size = batch_size

    def draw(self, generator: torch.Generator, augment: str) -> dict[str, Tensor]:
        group = 0
        if len(self.groups) > 1:
            weights = torch.tensor([float(len(rows)) for rows in self.kept])
            group = int(torch.multinomial(weights, 1, generator=generator))
        kept = self.kept[group]
        rows = kept[torch.randint(len(kept), (min(self.batch_size, len(kept)),), generator=generator)]
        return {name: _augmented(x[rows], generator, augment) for name, x in self.groups[group].items()}

    def held_out(self) -> Iterator[dict[str, Tensor]]:
        for group, out in zip(self.groups, self.out, strict=True):
            for rows in out.split(self.batch_size) if len(out) else ():
                yield {name: x[rows] for name, x in group.items()}


def _augmented(x: Tensor, generator: torch.Generator, how: str) -> Tensor:
    if how == "none" or x.dim() != 4:
        return x
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirrored.view(-1, 1, 1, 1).to(x.device), x.flip(-1), x)
    if how == "flip":
        return x
    most = max(1, x.shape[-1] // 8)
    padded = F.pad(x, [most] * 4, mode="reflect")
    shifts = torch.randint(2 * most + 1, (len(x), 2), generator=generator).tolist()
    height, width = x.shape[-2:]
    return torch.stack([p[:, i : i + height, j : j + width] for p, (i, j) in zip(padded, shifts, strict=True)])


class _Trained:
    """What moves: the student's floating tensors that nodes read as weights, and the neurons' parameters."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        weights = [path for node in draft.graph.nodes for path in node.params if not path.startswith("constants.")]
        self.paths = [path for path in dict.fromkeys(weights) if draft.tensors[path].is_floating_point()]
        for path in self.paths:
            draft.tensors[path] = draft.tensors[path].clone().requires_grad_()
        known = (ParallelNeuron, IntegrateFire)
        self.neurons = {name: neuron for name, neuron in draft.neurons.items() if isinstance(neuron, known)}
        self.staircases = [
            neuron
            for neuron in draft.neurons.values()
            if isinstance(neuron, Staircase) and neuron.code != "weighted" and neuron.outputs.dim() > 1
        ]
        for neuron in self.staircases:
            neuron.outputs.requires_grad_(True)
        student = draft.student
        self.start = student.kind.v_init if isinstance(student, OverTime) else "fitted"
        for neuron in self.neurons.values():
            neuron.requires_grad_(True)
            if isinstance(neuron, IntegrateFire):
                neuron.v_init.requires_grad_(self.start == "fitted")
        self.least = {name: 1e-6 * unit_of(neuron.v_threshold) for name, neuron in self.neurons.items()}

    def tensors(self) -> list[Tensor]:
        own = [parameter for neuron in self.neurons.values() for parameter in neuron.parameters()]
        own += [neuron.outputs for neuron in self.staircases]
        return [self.draft.tensors[path] for path in self.paths] + own

    def sizes(self) -> list[tuple[Tensor, float]]:
        """Every tensor with the size that its steps are a share of: its own, or for a shift that of a level."""
        sizes = [(self.draft.tensors[path], _rms(self.draft.tensors[path], self._unit(path))) for path in self.paths]
        for neuron in self.neurons.values():
            theta = _rms(neuron.v_threshold)
            sizes += [(neuron.v_threshold, theta)]
            if isinstance(neuron, ParallelNeuron):
                sizes += [(neuron.shift, theta / neuron.levels)]
            else:
                sizes += [(neuron.v_init, theta), (neuron.bias, theta / self.draft.T)]
            sizes += [(neuron.v_post, theta)]
        return sizes + [(neuron.outputs, _rms(neuron.outputs)) for neuron in self.staircases]

    def _unit(self, path: str) -> float:
        """The unit of the thresholds next behind a tensor, for what is 0 and has no size of its own."""
        ahead, readers = [node for node in self.draft.graph.nodes if path in node.params], self.draft.graph.consumers()
        for node in ahead:  # grows while it is walked
            if node.name in self.neurons:
                return float(unit_of(self.neurons[node.name].v_threshold.detach().max()))
            ahead += [reader for reader in readers[node.name] if reader not in ahead]
        return 1.0

    def state(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self.tensors()]

    @torch.no_grad()
    def restore(self, state: list[Tensor]) -> None:
        for tensor, value in zip(self.tensors(), state, strict=True):
            tensor.copy_(value)
        self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Make staircases run with the outputs that were learned."""
        for neuron in self.staircases:
            neuron.settle()

    @torch.no_grad()
    def keep_valid(self) -> None:
        """Thresholds stay above 0, and the outputs of a staircase do not fall."""
        for neuron in self.staircases:
            neuron.outputs.copy_(neuron.outputs.cummax(0).values)
        for name, neuron in self.neurons.items():
            neuron.v_threshold.clamp_(min=self.least[name])
            if self.start == "half" and isinstance(neuron, IntegrateFire):
                neuron.v_init.copy_(neuron.v_threshold / 2)

    def freeze(self) -> None:
        for path in self.paths:
            self.draft.tensors[path] = self.draft.tensors[path].detach()
        for neuron in (*self.neurons.values(), *self.staircases):
            neuron.requires_grad_(False)


class _Loss:
    """The distance of the outputs and of every activation, with the gradient of (9) through the staircases."""

    def __init__(self, draft: Draft, features: float) -> None:
        self.draft, self.features, self.distance = draft, features, Distance(draft)

    def __call__(self, env: Mapping[str, Tensor]) -> Tensor:
        errors: list[Tensor] = []

        def seen(node: Node, a: Tensor, b: Tensor) -> None:
            errors.append(relative_error(b, a))

        teacher, student = self.distance.outputs(env, seen=seen, soft=True)
        outputs = torch.stack([apart(s, t) for s, t in zip(student, teacher, strict=True)]).sum()
        return outputs + self.features * torch.stack(errors).mean() if errors else outputs

    def held_out(self, images: _Images) -> float:
        """Distance of the outputs on the held-out images, with the neurons as they will run."""
        return float(self.distance.to_teacher(images.held_out())[0].mean())


def _rms(tensor: Tensor, unit: float = 1.0) -> float:
    """Root mean square, at least a thousandth of the unit that the tensor is measured in. unit: where it is all 0."""
    largest = tensor.detach().abs().max()
    unit = float(unit_of(largest)) if largest > 0 else unit
    return unit * max(float((tensor.detach() / unit).square().mean().sqrt()), 1e-3)
