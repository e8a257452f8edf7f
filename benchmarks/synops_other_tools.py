"""Operations as other tools count them, on small spiking networks: what tests/test_energy.py compares ours with.

    python -m venv /tmp/ext                                  # outside the tree: none of this is needed by parspike
    /tmp/ext/bin/pip install torch==2.13.0 snntorch==1.0.0 neurobench==2.3.0 sinabs==3.1.3
    /tmp/ext/bin/python benchmarks/synops_other_tools.py     # writes benchmarks/synops_other_tools.json

Weights, inputs and spikes are whole numbers and powers of two, so every machine and every tool computes the same
spikes. The networks, written for each tool and in the test for parspike:

- "dense": 6 → 8 → 3, a ReLU's place between them taken by IF neurons, reset by subtraction; no bias.
- "conv": 2×6×6 → convolution 3×3, padding 1, stride 2, to 4 channels → IF → 3×3, padding 1, 2 groups, to 6 → IF →
  flatten → 5.

v(0) = 0, T = 6, and the input is the same at every step, real values or 0 and 1. snnTorch fires where v > θ, sinabs and
parspike where v ≥ θ: the threshold is 1 + 1/4096, which v never equals. snnTorch takes θ off a step late where v is
still above it after a spike, so the weights are so small that it never is; that both tools' neurons fire alike is
checked. Some weights are 0, which NeuroBench does not count and sinabs does.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FIGURES = Path(__file__).with_suffix(".json")
T, SAMPLES = 6, 3
THRESHOLD = 1 + 1 / 4096
EIGHTHS = 8
UNIT = {"dense": 8, "conv": 16}
SHAPES = {"dense": (6,), "conv": (2, 6, 6)}
NEURONS = {"dense": (8,), "conv": (36, 54)}


def weights(kind: str) -> list[Tensor]:
    """The weights of a network, in order: whole numbers from −3 to 5, over `UNIT`, a known share of them 0."""
    shapes = {"dense": [(8, 6), (3, 8)], "conv": [(4, 2, 3, 3), (6, 2, 3, 3), (5, 54)]}[kind]
    return [_pattern(shape, number) / UNIT[kind] for number, shape in enumerate(shapes)]


def _pattern(shape: tuple[int, ...], number: int) -> Tensor:
    """Whole numbers from −3 to 5 without a generator, which differs between versions of torch."""
    count = torch.arange(torch.Size(shape).numel())
    return ((count * 7 + count // 5 + 3 * number) % 9 - 3).float().reshape(shape)


def inputs(kind: str, spikes: bool) -> Tensor:
    """(SAMPLES, …): eighths from 0 to 1, or 0 and 1."""
    count = torch.arange(SAMPLES * torch.Size(SHAPES[kind]).numel())
    values = (count * 5 + count // 7) % 9
    return ((values > 4).float() if spikes else values / EIGHTHS).reshape(SAMPLES, *SHAPES[kind])


def layers(kind: str) -> list[nn.Module]:
    """The synapses of a network, with a `Flatten` before the last of "conv"."""
    made: list[nn.Module]
    if kind == "dense":
        made = [nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False)]
    else:
        made = [
            nn.Conv2d(2, 4, 3, 2, 1, bias=False), nn.Conv2d(4, 6, 3, 1, 1, groups=2, bias=False),
            nn.Linear(54, 5, bias=False),
        ]  # fmt: skip
    for layer, weight in zip(made, weights(kind), strict=True):
        layer.weight.data = weight  # pyright: ignore[reportAttributeAccessIssue]
    return made


def neurobench(kind: str, spikes: bool) -> dict[str, Any]:
    """NeuroBench's metrics on a network of snnTorch."""
    import snntorch
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import ConnectionSparsity, ParameterCount
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
    from neurobench.models import SNNTorchModel
    from torch.utils.data import DataLoader, TensorDataset

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.synapses = nn.ModuleList(layers(kind))
            self.neurons = nn.ModuleList(
                snntorch.Leaky(
                    1.0, threshold=THRESHOLD, reset_mechanism="subtract", init_hidden=True, reset_delay=False
                )
                for _ in self.synapses[1:]
            )

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            for synapse, neuron in zip(self.synapses, self.neurons, strict=False):
                x = neuron(synapse(x))
            x = self.synapses[-1](x.flatten(1))
            return x, x

    model = SNNTorchModel(Network())
    x = inputs(kind, spikes)[:, None].expand(-1, T, *SHAPES[kind])
    data = DataLoader(TensorDataset(x, torch.zeros(SAMPLES)), SAMPLES)
    # No footprint: it would hold snnTorch's own buffers.
    static, workload = [ParameterCount, ConnectionSparsity], [ActivationSparsity, SynapticOperations]
    found = Benchmark(model, data, [], [lambda out: out.sum(1).argmax(1)], [static, workload]).run(quiet=True)
    return {name: value if isinstance(value, dict) else float(value) for name, value in found.items()}


def sinabs(kind: str, spikes: bool) -> dict[str, Any]:
    """sinabs' SynOps by layer, of one sample in T steps, and the firing rates of its neurons."""
    from sinabs.activation import MembraneSubtract, SingleSpike
    from sinabs.hooks import register_synops_hooks
    from sinabs.layers import IAFSqueeze

    modules: list[nn.Module] = []
    for number, layer in enumerate(made := layers(kind)):
        if number == len(made) - 1:
            modules += [nn.Flatten(), layer]
        else:
            neuron = IAFSqueeze(
                spike_threshold=THRESHOLD, batch_size=SAMPLES, spike_fn=SingleSpike, reset_fn=MembraneSubtract(),
                min_v_mem=None,
            )  # fmt: skip
            modules += [layer, neuron]
    network = nn.Sequential(*modules)
    register_synops_hooks(network)
    x = inputs(kind, spikes)[:, None].expand(-1, T, *SHAPES[kind]).flatten(0, 1)
    rates = []
    with torch.no_grad():
        for module in network:
            x = module(x)
            if isinstance(module, IAFSqueeze):
                rates.append(float(x.mean()))
    synops = [float(m.hook_data["layer_synops_per_timestep"]) * T for m in network if hasattr(m, "hook_data")]
    return {"synops": synops, "rates": rates}


def main() -> None:
    """Run both tools on all networks."""
    tools = ("torch", "snntorch", "neurobench", "sinabs")
    found: dict[str, Any] = {"versions": {tool: importlib.metadata.version(tool) for tool in tools}}
    for kind in SHAPES:
        for spikes in (False, True):
            name = f"{kind}, {'spikes' if spikes else 'values'}"
            found[name] = {"neurobench": neurobench(kind, spikes), "sinabs": (said := sinabs(kind, spikes))}
            fired = sum(rate * size for rate, size in zip(said["rates"], NEURONS[kind], strict=True)) / sum(
                NEURONS[kind]
            )
            if abs(1 - fired - found[name]["neurobench"]["ActivationSparsity"]) > 1e-6:
                raise SystemExit(f"{name}: the neurons of the two tools fire differently")
            print(name, found[name])
    FIGURES.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
