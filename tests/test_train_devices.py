"""Several processes train one network. Run as a script, this file becomes two such processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training import TEST, TRAIN, network, recipe

from parspike.errors import OptionError
from parspike.train import Arrays, Devices, DivergedError, activation, fit

pytest.importorskip("lightning_fabric", reason="needs pip install 'parspike[train]'")
ODD = Arrays.of(TEST.images[:63], TEST.labels[:63])  # cannot be shared evenly


PATHS = os.pathsep.join(str(Path(__file__).parents[1] / folder) for folder in ("src", "tests"))
QUIET = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1", "PYTHONPATH": PATHS}


def environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    said = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "GROUP_RANK": 0, "LOCAL_WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
    return {name: str(value) for name, value in said.items()}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def together(commands: list[list[str]], environments: list[dict[str, str]]) -> str:
    """Run them side by side; what they print."""
    processes = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command, env in zip(commands, environments, strict=True)
    ]
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(errors for _, errors in said)
    return "".join(out for out, _ in said)


def equal(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one / "weights.safetensors"), load_file(other / "weights.safetensors")
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("devices")
    together([[sys.executable, __file__, str(folder), str(free_port())]], [QUIET])
    return folder


def test_divided_weights_are_those_of_whole_ones(trained: Path) -> None:
    divided, whole = (load_file(trained / name / "weights.safetensors") for name in ("fsdp", "ddp"))
    assert divided.keys() == whole.keys() == network(recipe()).state_dict().keys()
    for name in whole:  # two devices' sums in either order
        assert torch.allclose(divided[name].double(), whole[name].double(), rtol=1e-4, atol=1e-5), name
    start = network(recipe()).state_dict()
    assert not torch.equal(whole["act1.v_threshold"], start["act1.v_threshold"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_run_of_two_processes_goes_on_to_the_same_weights(trained: Path, strategy: str) -> None:
    assert equal(trained / strategy, trained / f"{strategy}-resumed")


@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_every_test_image_is_scored_once_by_one_network(trained: Path, strategy: str) -> None:
    model: Any = network(recipe())
    model.load_state_dict(weights := load_file(trained / strategy / "weights.safetensors"))
    x, y = ODD.plain(torch.arange(63))
    right = int((model.eval()(x).argmax(1) == y).sum())
    assert json.loads((trained / strategy / "weights.json").read_text())["accuracy"] == right / 63
    other = torch.load(trained / f"{strategy}-buffers.pt", weights_only=True)
    assert all(torch.equal(other[name], weights[name]) for name in other)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_processes_stop_where_the_loss_of_one_is_not_finite(trained: Path, strategy: str) -> None:
    said = [(trained / f"{strategy}-diverged" / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert all("step 7 (epoch 2)" in text and "last.ckpt, stays" in text for text in said)
    assert "'conv1'" in said[1]
    assert torch.load(trained / f"{strategy}-diverged" / "last.ckpt", weights_only=True)["step"] == 6


@pytest.mark.slow
def test_two_machines_train_what_two_processes_train(trained: Path, tmp_path: Path) -> None:
    splits = {"train": TRAIN, "test": ODD}
    arrays = {f"{name}_images": data.images[:, 0].numpy() for name, data in splits.items()}
    np.savez(tmp_path / "stripes.npz", **arrays, **{f"{n}_labels": d.labels.numpy() for n, d in splits.items()})
    (tmp_path / "recipe.toml").write_text(
        f'network = "{Path(__file__).with_name("training.py")}:Network"\n'
        "activation = { levels = 4, v_threshold = 2.0 }\ndata = { classes = 2 }\n"
        "augment = { crop_padding = 1, flip = true, cutout = 2 }\n"
        "optimiser = { epochs = 3, batch_size = 16, lr = 0.05, accumulate = 2 }\n"
    )
    launcher = f"""{sys.executable} -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d
        --rdzv-endpoint 127.0.0.1:{free_port()} --rdzv-id test --no-python {sys.executable} -c"""
    args = f"""train {tmp_path}/recipe.toml --data {tmp_path}/stripes.npz --cache {tmp_path}/cache -o {tmp_path}/run
        --accelerator cpu --strategy ddp --devices 1 --nodes 2 --json"""
    command = [*launcher.split(), "from parspike.cli import main; main()", *args.split()]
    said = together([command, command], [QUIET, QUIET])
    answers = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [answer["step"] for answer in answers] == [18]  # one process speaks
    assert equal(trained / "ddp", tmp_path / "run")


def test_what_divided_weights_cannot_do(tmp_path: Path) -> None:
    made = recipe(precision="64-true")
    with pytest.raises(OptionError, match="fsdp trains in precision 32-true or bf16-mixed, not 64-true"):
        fit(made, network(made), TRAIN, TEST, tmp_path, devices=Devices("cpu", 1, strategy="fsdp"))


class Poison(nn.Module):
    """Inf from the convolution's eighth training pass on, in process 1."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.calls = 0
        plain.conv1.register_forward_hook(self.spoil)

    def spoil(self, module: nn.Module, args: Any, output: Any) -> Any:
        self.calls += module.training
        return output * float("inf") if self.calls > 7 and torch.distributed.get_rank() == 1 else output


def two(folder: Path, port: int) -> None:
    """This process and its copy train together. To import torch twice would take longer than all trainings."""
    copy = os.fork()
    os.environ |= environment(1 if copy == 0 else 0, port)
    try:
        main(folder)
    except BaseException:
        if copy:  # it would wait for this process
            os.kill(copy, signal.SIGKILL)
        raise
    if copy:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]))


def main(folder: Path) -> None:
    """Train whole, killed and resumed, and poisoned, in each strategy."""
    torch.set_num_threads(1)
    activation._can_compile = lambda device: False  # what would compile is imported, and only takes time
    rank = int(os.environ["RANK"])
    for strategy in ("ddp", "fsdp"):
        devices, made = Devices("cpu", 2, strategy=strategy), recipe(optimiser__accumulate=2)

        def kill(what: str, done: int, total: int, run: str = strategy) -> None:
            if done == 8:  # the checkpoint of step 7 is all that a killed run leaves
                (folder / f"{run}-resumed").mkdir()
                shutil.copy(folder / run / "last.ckpt", folder / f"{run}-resumed")

        model = network(made)
        fit(made, model, TRAIN, ODD, folder / strategy, devices=devices, save_every=0.0, progress=kill)
        if rank == 1:
            torch.save(dict(model.named_buffers()), folder / f"{strategy}-buffers.pt")
        fit(made, network(made), TRAIN, ODD, folder / f"{strategy}-resumed", devices=devices, resume=True)
        one = recipe()
        model = network(one)
        Poison(model)
        try:
            fit(one, model, TRAIN, TEST, folder / f"{strategy}-diverged", devices=devices)
        except DivergedError as error:
            (folder / f"{strategy}-diverged" / f"{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    two(Path(sys.argv[1]), int(sys.argv[2]))
