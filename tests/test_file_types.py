"""Files of networks that were cast: the type of the inputs is that which the network runs on, also in old files."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parspike
from parspike.errors import FileError

TYPES = [torch.float16, torch.bfloat16, torch.float64]


class Net(nn.Module):
    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.m = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.m, x)


def tokens(batch: int = 8) -> Tensor:
    return torch.arange(batch * 5).reshape(batch, 5) % 10


def rows(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))


def positions(m: Any, x: Tensor) -> Tensor:
    at = torch.arange(x.shape[1], device=x.device).to(m[0].weight.dtype)
    return m[1](F.gelu(m[0](x) + at[:, None])).mean(1)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), rows(6)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.ReLU6()),
        rows(3, 8, 8),
    ),
    "norm first": (lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), rows(6)),
    "product of maps": (lambda: Net(lambda m, x: m[0](x) @ m[1].weight, nn.Linear(6, 4), nn.Linear(3, 4)), rows(2, 6)),
    "positions": (lambda: Net(positions, nn.Linear(6, 8), nn.Linear(8, 3)), rows(5, 6)),
    "blanks": (
        lambda: Net(lambda m, x: m[1](torch.where(x[:, :1] > 0, F.relu(m[0](x)), torch.zeros(8, dtype=x.dtype))),
                    nn.Linear(6, 8), nn.Linear(8, 3)),
        rows(6),
    ),
    "tokens": (lambda: Net(lambda m, x: m[2](F.relu(m[1](m[0](x).mean(1)))), nn.Embedding(10, 6), nn.Linear(6, 8),
                           nn.Linear(8, 3)), tokens),
}  # fmt: skip


def cast_snn(name: str, dtype: torch.dtype) -> tuple[parspike.SNN, Tensor]:
    """A network converted in float32 and cast afterwards, with an input of the type that it takes then."""
    make, example = NETWORKS[name]
    torch.manual_seed(0)
    x = example()
    snn = parspike.convert(make().eval(), [x], T=4, recipe="max").to(dtype)
    return snn, x.to(dtype) if x.is_floating_point() else x


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """The file with its JSON, and the entries of its tensors, changed and its checksum made right again."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    about, body = header["__metadata__"], json.loads(header["__metadata__"]["network"])
    change(body, header)
    about |= {"network": json.dumps(body), "sha256": "0" * 64}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    made = struct.pack("<Q", len(text)) + text + content[8 + length :]
    path.write_bytes(made[:55] + hashlib.sha256(made).hexdigest().encode() + made[119:])
    return path


def traced_in(dtype: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Inputs of the type that they had in tracing, as files said before inputs followed a cast."""

    def change(body: dict[str, Any], _: dict[str, Any]) -> None:
        for given in body["graph"]["inputs"]:
            given["dtype"] = given["dtype"] if "int" in given["dtype"] else dtype

    return change


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_was_cast_is_loaded_as_it_was(name, dtype, tmp_path):
    snn, x = cast_snn(name, dtype)
    path = snn.save(tmp_path / "net.parspike")
    loaded = [parspike.load(path), parspike.load(rewritten(path, traced_in("torch.float32")))]
    for again in loaded:
        assert torch.equal(again(x), snn(x))
        assert again(x).dtype == dtype
        assert [i.dtype for i in again.graph.inputs] == [x.dtype]


def test_inputs_that_the_network_casts_itself_keep_their_type(tmp_path):
    torch.manual_seed(0)
    model = Net(lambda m, x: m[1](F.relu(m[0](x.double()))), nn.Linear(6, 8), nn.Linear(8, 3)).double().eval()
    x = rows(6)()
    snn = parspike.convert(model, [x], T=4, recipe="max")
    again = parspike.load(snn.save(tmp_path / "net.parspike"))
    assert [i.dtype for i in again.graph.inputs] == [torch.float32]
    assert torch.equal(again(x), snn(x))


def of_another_type(suffix: str, kind: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(_: dict[str, Any], header: dict[str, Any]) -> None:
        next(entry for name, entry in header.items() if name.endswith(suffix))["dtype"] = kind

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("linear", of_another_type("2.weight", "BF16")),
        ("linear", of_another_type("0.bias", "BF16")),
        ("convolution", of_another_type("3.weight", "BF16")),
        ("norm first", of_another_type("0.weight", "BF16")),
        ("product of maps", of_another_type("m.1.weight", "BF16")),
    ],
)
def test_tensors_of_unlike_types_are_refused(name, change, tmp_path):
    """As bits the tensors are whole, so that only their types speak against them."""
    snn, _ = cast_snn(name, torch.float16)
    path = rewritten(snn.save(tmp_path / "net.parspike"), change)
    with pytest.raises(FileError, match=r"net\.parspike': node '\w+' \(aten\.\w+\.default\) cannot run"):
        parspike.load(path)
