"""The training loop, on Lightning Fabric, which provides devices, precision and collectives.

**What one step draws by chance is a function of the seed and the number of the step**, never of what happened
before. A checkpoint is therefore the network, the optimiser and a number, and a run that was killed anywhere goes on
to the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parspike.errors import FileError, InputError, OptionError, ParspikeError, path_of
from parspike.foreign import place_of
from parspike.neurons import QCFS
from parspike.train import log
from parspike.train.augment import Augmentation
from parspike.train.checkpoint import check_checkpoint, save_checkpoint, save_weights, stays
from parspike.train.data import Examples, check_labels, normalised
from parspike.train.devices import Devices, local, make_fabric
from parspike.train.hub import HubStream
from parspike.train.methods import Group
from parspike.train.methods.base import check_logits
from parspike.train.networks import NETWORKS
from parspike.train.ondemand import OnDemand
from parspike.train.recipe import Optimiser, TrainingRecipe
from parspike.whole import write_whole

__all__ = ["DivergedError", "Result", "fit"]

Progress = Callable[[str, int, int], None]

FACTORY = '''"""`network.py:network` is the SPEC of the network trained here."""

from pathlib import Path

from parspike.train import load_trained{imported}


def network():{method}
    return load_trained(Path(__file__).parent)
'''


class DivergedError(ParspikeError):
    """The loss became NaN or Inf; names the step and the layer."""


@dataclass(frozen=True)
class Result:
    """accuracy: of the last epoch, on the test images. step, seconds: with those of the runs it went on from."""

    accuracy: float
    epoch: int
    step: int
    seconds: float
    weights: Path


def fit(
    recipe: TrainingRecipe,
    network: nn.Module,
    train: Examples | HubStream,
    test: Examples,
    folder: str | Path,
    *,
    devices: Devices | None = None,
    resume: bool = False,
    save_every: float = 60.0,
    tensorboard: bool = False,
    compile: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Result:
    """Train `network` (as `make_network` made it) and write its weights, log.csv and network.py into `folder`.

    resume: go on from folder/last.ckpt if there is one. save_every: seconds between checkpoints; one is also written
    at the end of every epoch. tensorboard: also log for TensorBoard. compile: the whole network by torch.compile.
    Under torchrun each process calls this with the same arguments.
    Raises `DivergedError`, `FileError` (a full disk: the last checkpoint stays), `InputError`, `OptionError`.
    """
    folder = path_of(folder)
    fabric = make_fabric(recipe, devices or Devices())
    for data in (train, test):
        if not isinstance(data, HubStream):  # a stream checks its labels as it reads them
            check_labels(data.labels, recipe.data.classes)
    run = _Run(recipe, network, train, test, folder, fabric, save_every, tensorboard, compile, progress)
    with torch.random.fork_rng():
        return run.go(resume)


class _Run:
    """One training. `self.state` is all that changes while it runs."""

    def __init__(
        self, recipe: TrainingRecipe, network: nn.Module, train: Examples | HubStream, test: Examples, folder: Path,
        fabric: Any, save_every: float, tensorboard: bool, compile: bool, progress: Progress,
    ) -> None:  # fmt: skip
        self.recipe, self.train, self.test, self.folder = recipe, train, test, folder
        self.fabric, self.save_every = fabric, save_every
        self.progress = progress if fabric.is_global_zero else lambda what, done, total: None
        options = recipe.optimiser
        micro, rest = divmod(options.batch_size, options.accumulate * fabric.world_size)
        if rest:
            raise OptionError(
                f"batch_size = {options.batch_size} cannot be shared by {fabric.world_size} devices "
                f"× accumulate = {options.accumulate}"
            )
        self.micro = micro
        self.steps_per_epoch = len(train) // options.batch_size
        self.total = options.epochs * self.steps_per_epoch
        if not self.steps_per_epoch:
            raise InputError(f"{len(train)} training images are fewer than batch_size = {options.batch_size}")
        if len(test) < fabric.world_size:
            raise InputError(f"{len(test)} test images are fewer than the {fabric.world_size} devices")
        self.plain = network.to(fabric.device)
        if compile:
            network.compile()
        self.network = fabric.setup_module(network)
        parameters = list(network.parameters())
        # After the network, whose parameters the strategy may have replaced.
        groups = recipe.activation.groups(network)
        self.rates = [group.rate for group in groups]
        self.optimiser = fabric.setup_optimizers(_optimiser(options, groups))
        self.sharded = any(isinstance(p, DTensor) for p in parameters)
        self.whole = [p for p in parameters if not isinstance(p, DTensor)] if self.sharded else []
        # Images that are decoded on demand are cropped there, since they come in all sizes.
        steps = replace(recipe.augment, resized_crop=0) if isinstance(train, OnDemand | HubStream) else recipe.augment
        self.augment = Augmentation(steps, recipe.data.mean)
        self.reader, self.ahead = ThreadPoolExecutor(1), {}
        self.state: dict[str, Any] = {
            "step": 0, "seconds": 0.0, "best": 0.0, "best_epoch": 0, "accuracy": 0.0, "stopped": False,
        }  # fmt: skip
        self.logger = log.tensorboard(folder) if tensorboard else None
        self.order: tuple[int, Tensor] = (-1, torch.empty(0))

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.ckpt"

    def go(self, resume: bool) -> Result:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{self.folder}: no folder can be made there ({error})") from error
        if resume and self.checkpoint.exists():
            self._load()
        elif self.checkpoint.exists():
            raise FileError(f"{self.checkpoint} exists: go on with it (--resume), or choose another folder")
        total = self.total
        began, saved = time.monotonic() - self.state["seconds"], time.monotonic()
        running: list[float] = []
        while self.state["step"] < total and not self.state["stopped"]:
            step = self.state["step"]
            if step % self.steps_per_epoch == 0:
                self._before_epoch(step)
            running.append(self._step(step))
            self.state["step"] = step = step + 1
            self.state["seconds"] = time.monotonic() - began
            self.progress(f"epoch {1 + (step - 1) // self.steps_per_epoch}, loss {running[-1]:.3f}", step, total)
            ended = step % self.steps_per_epoch == 0
            if ended:
                self._end_of_epoch(step // self.steps_per_epoch, running)
                running = []
            # Rank 0's clock decides for all, since saving gathers the weights from every process.
            if self.fabric.broadcast(ended or time.monotonic() - saved > self.save_every):
                self._save()
                saved = time.monotonic()
        return self._finish()

    def _step(self, step: int) -> float:
        options, fabric = self.recipe.optimiser, self.fabric
        rate = learning_rate(options.lr, step, self.total, options.warmup * self.steps_per_epoch)
        for group, share in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = share * rate
        self.network.train()
        loss_sum = 0.0
        for part in range(options.accumulate):
            _seed(self.recipe.seed, step, part, fabric.global_rank)
            x, y = self._batch(step, part)
            with fabric.no_backward_sync(self.network, enabled=part < options.accumulate - 1):
                loss = self._loss(x, y)
                value = loss.item()
                if self._anywhere(not math.isfinite(value)):
                    self._diverged(step, x)
                fabric.backward(loss / options.accumulate)
            loss_sum += value
        for parameter in self.whole:
            parameter.grad = fabric.all_reduce(parameter.grad)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss_sum / options.accumulate

    def _before_epoch(self, step: int) -> None:
        """What the method changes from epoch to epoch: a function of the network and of this epoch's first batch."""

        def batch() -> tuple[Tensor, Tensor]:
            reading = self.ahead.get((step, 0)) or self._read(step, 0)
            self.ahead = {(step, 0): reading}  # the first step asks for it again
            x, y = reading.result()
            _seed(self.recipe.seed, step, 0, self.fabric.global_rank)
            x = self._normalise(self.augment(x.to(self.fabric.device)))
            # That of process 0, so that all draw the same conclusion.
            return self.fabric.broadcast((x, y.to(self.fabric.device)))

        self.network.train()
        epoch = step // self.steps_per_epoch
        self.recipe.activation.before_epoch(self.plain, epoch, self.recipe.optimiser.epochs, batch)

    def _batch(self, step: int, part: int) -> tuple[Tensor, Tensor]:
        x, y = (self.ahead.pop((step, part), None) or self._read(step, part)).result()
        # The next one is read while this one is computed.
        following = (step, part + 1) if part + 1 < self.recipe.optimiser.accumulate else (step + 1, 0)
        self.ahead = {following: self._read(*following)} if following[0] < self.total else {}
        x, y = x.to(self.fabric.device), y.to(self.fabric.device)
        return self._normalise(self.augment(x)), y

    def _read(self, step: int, part: int) -> Future[tuple[Tensor, Tensor]]:
        epoch, place = divmod(step, self.steps_per_epoch)
        fabric, seed = self.fabric, _mix(self.recipe.seed, epoch)
        if isinstance(self.train, HubStream):
            after = (place * self.recipe.optimiser.accumulate + part) * self.micro
            return self.reader.submit(self.train.take, self.micro, after, seed, fabric.global_rank, fabric.world_size)
        if self.order[0] != epoch:
            generator = torch.Generator().manual_seed(seed)
            self.order = (epoch, torch.randperm(len(self.train), generator=generator))
        start = place * self.recipe.optimiser.batch_size
        start += (part * fabric.world_size + fabric.global_rank) * self.micro
        rows = self.order[1][start : start + self.micro]
        return self.reader.submit(self.train.take, rows, seed)

    def _normalise(self, x: Tensor) -> Tensor:
        x = normalised(x, self.recipe.data.mean, self.recipe.data.std)
        return x.double() if self.recipe.precision == "64-true" else x

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        method, classes = self.recipe.activation, self.recipe.data.classes
        output = method.outputs(self.network, x)
        check_logits(method, output, len(x), classes)
        loss = method.loss(output.float(), y, self.recipe.optimiser.label_smoothing)
        return loss + method.penalty(self.plain)

    def _end_of_epoch(self, epoch: int, losses: list[float]) -> None:
        """Score, log, and see whether to stop early."""
        accuracy = self._accuracy()
        patience = self.recipe.optimiser.patience
        if accuracy > self.state["best"]:
            self.state |= {"best": accuracy, "best_epoch": epoch}
        self.state["accuracy"] = accuracy
        row = {
            "epoch": epoch, "step": self.state["step"], "loss": sum(losses) / len(losses), "accuracy": accuracy,
            "lr": self.optimiser.param_groups[0]["lr"], "seconds": round(self.state["seconds"], 1),
        }  # fmt: skip
        if self.fabric.is_global_zero:
            log.append(self.folder / "log.csv", row)
            if self.logger is not None:
                self.logger.log_metrics({k: v for k, v in row.items() if k != "step"}, row["step"])
        self.state["stopped"] = bool(patience) and epoch - self.state["best_epoch"] >= patience

    @torch.no_grad()
    def _accuracy(self) -> float:
        """Accuracy over all processes' shares. Each makes equally many forward passes, since a pass may wait for the
        other processes."""
        fabric = self.fabric
        if self.sharded:  # DDP does the same before each pass: the batch norms' statistics are those of process 0
            for buffer in self.plain.buffers():
                torch.distributed.broadcast(buffer, 0)
        self.network.eval()
        right, seen = torch.zeros(2, dtype=torch.int64, device=fabric.device)
        share = torch.arange(fabric.global_rank, len(self.test), fabric.world_size)
        passes = math.ceil(len(self.test) / fabric.world_size / max(self.micro, 256))
        for rows in share.tensor_split(passes):
            x, y = self.test.plain(rows)
            x, y = self._normalise(x.to(fabric.device)), y.to(fabric.device)
            right += (self.network(x).argmax(1) == y).sum()
            seen += len(y)  # fewer than the rows where broken images are left out
        return int(fabric.all_reduce(right, reduce_op="sum")) / int(fabric.all_reduce(seen, reduce_op="sum"))

    def _anywhere(self, here: bool) -> bool:
        """Whether the condition holds in any process. All then act together (stop, find the layer), since one alone
        would wait for the others for ever."""
        return bool(self.fabric.all_reduce(torch.tensor(float(here), device=self.fabric.device), reduce_op="max"))

    def _diverged(self, step: int, x: Tensor) -> None:
        where = _first_bad(self.plain, self.network, x)
        epoch = 1 + step // self.steps_per_epoch
        raise DivergedError(
            f"the loss is not finite at step {step} (epoch {epoch}): {where}{stays(self.checkpoint)}. "
            "Lower the learning rate, or raise optimiser.warmup"
        )

    def _save(self) -> None:
        weight = _not_finite(self.plain)
        bad = f"{weight} is not finite" if weight else _not_above_zero(self.plain)
        if self._anywhere(bool(bad)):
            raise DivergedError(
                f"{bad or 'a weight in another process is not finite'} after step {self.state['step']}"
                f"{stays(self.checkpoint)}. Lower the learning rate, or raise optimiser.warmup"
            )
        everything = {
            "network": self.network, "optimiser": self.optimiser, **self.state,
            "recipe": json.dumps(self.recipe.to_json()), "data": self.train.digest,
            "precision": self.fabric.strategy.precision.state_dict(),  # the scale of float16's gradients
        }  # fmt: skip
        save_checkpoint(self.fabric, self.checkpoint, everything)

    def _load(self) -> None:
        check_checkpoint(self.checkpoint, self.recipe, self.plain, self.train.digest)
        state = {"network": self.network, "optimiser": self.optimiser}
        rest = self.fabric.load(self.checkpoint, state, strict=True, weights_only=True)
        self.state = {name: rest[name] for name in self.state}
        self.fabric.strategy.precision.load_state_dict(rest["precision"])
        if self.fabric.is_global_zero:
            log.drop_after(self.folder / "log.csv", self.state["step"])

    def _factory(self) -> str:
        """The text of network.py, which runs the file of the user's method, where it is one."""
        own = type(self.recipe.activation)
        if own.__module__.partition(".")[0] in ("parspike", "__main__"):
            return FACTORY.format(imported="", method="")
        return FACTORY.format(
            imported="\nfrom parspike.train.methods import method_name",
            method=f"\n    method_name({place_of(own)!r})  # makes the method known that it was trained with",
        )

    def _finish(self) -> Result:
        weights = self.folder / "weights.safetensors"
        if self.fabric.is_global_zero:
            # From the file, which holds the whole weights also if each device holds only a part.
            saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True, mmap=True)
            save_weights(weights, saved["network"], self.recipe, self.state, self.train.digest)
            if self.recipe.network in NETWORKS:
                write_whole(self.folder / "network.py", [self._factory().encode()])
        self.fabric.barrier()
        state = self.state
        return Result(
            state["accuracy"], state["step"] // self.steps_per_epoch, state["step"], state["seconds"], weights
        )


def _optimiser(options: Optimiser, groups: list[Group]) -> torch.optim.Optimizer:
    parameters = [{"params": g.parameters, "weight_decay": options.weight_decay if g.decay else 0.0} for g in groups]
    if options.name == "adamw":
        return torch.optim.AdamW(parameters, lr=options.lr, betas=(options.momentum, 0.999))
    return torch.optim.SGD(parameters, lr=options.lr, momentum=options.momentum, nesterov=options.nesterov)


def learning_rate(highest: float, step: int, total: int, warmup: float) -> float:
    """Linear rise over `warmup` steps, then half a cosine that reaches 0 after `total`.

    >>> [round(learning_rate(1.0, step, 8, 2), 3) for step in range(9)]
    [0.5, 1.0, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067, 0.0]
    """
    if step < warmup:
        return highest * (step + 1) / warmup
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _seed(*numbers: int) -> None:
    torch.manual_seed(_mix(*numbers))


def _mix(*numbers: int) -> int:
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (2**63 - 25)
    return mixed


def _not_finite(plain: nn.Module) -> str:
    """The first parameter with NaN or Inf in what this process holds, in quotes; empty if there is none."""
    return next((f"'{n}'" for n, p in plain.named_parameters() if not torch.isfinite(local(p.detach())).all()), "")


def _not_above_zero(plain: nn.Module) -> str:
    """The first threshold that no neuron can have, in what this process holds, in words; empty if there is none."""
    for name, module in plain.named_modules():
        if isinstance(module, QCFS) and bool((local(module.v_threshold) <= 0).any()):
            return f"the threshold of layer '{name}' fell to 0 or below"
    return ""


@torch.no_grad()
def _first_bad(plain: nn.Module, network: nn.Module, x: Tensor) -> str:
    """Which layer is the first with NaN or Inf, in its weights or its output."""
    bad: list[str] = []
    handles = []
    for name, module in plain.named_modules():

        def look(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            if not bad and isinstance(output, Tensor) and not torch.isfinite(output).all():
                bad.append(name)

        handles.append(module.register_forward_hook(look))
    try:
        network(x)
    finally:
        for handle in handles:
            handle.remove()
    if weights := _not_finite(plain):
        return f"{weights} holds NaN or Inf"
    if fallen := _not_above_zero(plain):
        return fallen
    return f"the first layer with NaN or Inf is '{bad[0] or 'the network'}'" if bad else "in the loss itself"
