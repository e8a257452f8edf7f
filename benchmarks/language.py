"""Language models converted: SmolLM2-135M by its perplexity on text, MiniLM by the cosine of its sentence vectors.

    python benchmarks/language_files.py ../ext/lm        # once: networks and text; its first lines say how
    python benchmarks/language.py smollm2 --calibration 16 --test 16
    python benchmarks/language.py minilm --calibration 128 --test 200 --codes "weighted, 4" "weighted, 6"
    python benchmarks/language.py minilm --analog lookup                             # softmax, norms, divisions too
    python benchmarks/language.py minilm --analog lookup --spike "*act*"             # and GELU as two staircases
    python benchmarks/language.py minilm --analog lookup --whole --codes "weighted, 6"   # in whole numbers
    python benchmarks/language.py attention gated heads groups --calibration 256 --test 256     # random weights
    python benchmarks/language.py smollm2 --calibration 8 --test 4 --tokens 64       # minutes, to try something
    python benchmarks/language.py --render docs/language.md

Conversions are fitted on sequences of text/calibration and measured on sequences of text/test, which are other files;
both are drawn by a seed. One JSON line a figure goes to benchmarks/language.jsonl, kept with the code; what stands
there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision_operators
from few_steps import put
from torch import Tensor, nn

import parspike
from parspike.lower import integers

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "benchmarks" / "language.jsonl"
CODES: dict[str, tuple[int, Any]] = {
    "T = 8": (8, "sorted"),
    "T = 16": (16, "sorted"),
    "weighted, 3": (3, "weighted"),
    "weighted, 4": (4, "weighted"),
    "weighted, 6": (6, "weighted"),
    "weighted, 8": (8, "weighted"),
}
CODES_OF_LOOKUP = ("weighted, 4", "weighted, 6", "weighted, 8")
TOKENS = {"smollm2": 256, "minilm": 64}
BATCH = {"smollm2": 4, "minilm": 16}
WIDE, HEADS, SEEN = 32, 4, 12
"""Features, heads and tokens of the networks with random weights."""


class Attending(nn.Module):
    """Two layer norms, causal attention, a ReLU layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(WIDE), nn.LayerNorm(WIDE)
        self.qkv, self.o = nn.Linear(WIDE, 3 * WIDE), nn.Linear(WIDE, WIDE)
        self.into, self.back, self.head = nn.Linear(WIDE, 128), nn.Linear(128, WIDE), nn.Linear(WIDE, 10)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (3 * self.qkv(self.one(x))).unflatten(2, (3, HEADS, WIDE // HEADS)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return self.head((x + self.back(self.into(self.two(x)).relu())).mean(1))


class Gated(nn.Module):
    """Two gated layers, down(SiLU(gate) · up), behind RMS norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(WIDE, eps=1e-6) for _ in range(3))
        self.gate, self.up = (nn.ModuleList(nn.Linear(WIDE, 96) for _ in range(2)) for _ in range(2))
        self.down, self.head = nn.ModuleList(nn.Linear(96, WIDE) for _ in range(2)), nn.Linear(WIDE, 10)

    def forward(self, x: Tensor) -> Tensor:
        for norm, gate, up, down in zip(self.norms, self.gate, self.up, self.down, strict=False):
            y = norm(x)
            x = x + down(F.silu(gate(y)) * up(y))
        return self.head(self.norms[2](x))


class Heads(nn.Module):
    """A pool of tokens by a softmax, and four experts that another softmax weighs."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.pool = nn.Linear(WIDE, 64), nn.Linear(64, 1)
        self.gate, self.experts, self.head = nn.Linear(64, 4), nn.Linear(64, 64), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x).relu()
        y = (torch.softmax(3 * self.pool(y), 1) * y).sum(1)
        experts = self.experts(y).relu().unflatten(1, (4, 16))
        return self.head((torch.softmax(3 * self.gate(y), 1)[..., None] * experts).sum(1))


class Groups(nn.Module):
    """Three convolutions with norms over groups of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, WIDE, 3, 2, 1), nn.Conv2d(WIDE, WIDE, 3, padding=1)]
        )
        self.norms = nn.ModuleList([nn.GroupNorm(4, 16), nn.GroupNorm(8, WIDE), nn.GroupNorm(1, WIDE)])
        self.head = nn.Linear(WIDE, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x)).relu()
        return self.head(x.mean((2, 3)))


RANDOM = {"attention": Attending, "gated": Gated, "heads": Heads, "groups": Groups}
"""Networks with seeded random weights. Their inputs are normal, and of sizes that differ eight times."""
SHOWN = {
    **{name: ("error", f"{name}, random weights, relative error of the outputs", "{:.4f}") for name in RANDOM},
    "smollm2": ("ratio", "SmolLM2-135M, perplexity / the network's", "{:.3f}"),
    "minilm": ("cosine", "all-MiniLM-L6-v2, mean cosine with the network's vectors", "{:.4f}"),
}


def drawn(sequences: Tensor, number: int) -> Tensor:
    """A seeded choice of sequences."""
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0))
    return sequences[order[:number]]


def random_inputs(name: str, number: int, seed: int) -> Tensor:
    """Inputs of a network with random weights."""
    made = torch.Generator().manual_seed(seed)
    shape = (3, 16, 16) if name == "groups" else (SEEN, WIDE)
    sizes = 0.3 + 2 * torch.rand(number, *[1] * len(shape), generator=made)
    return sizes * torch.randn(number, *shape, generator=made)


def figures() -> list[dict[str, Any]]:
    """The figures that the file holds."""
    return [json.loads(text) for text in FIGURES.read_text().splitlines()] if FIGURES.is_file() else []


def keep(key: list[Any], scores: dict[str, Any]) -> None:
    """Write a figure as a line of the file, and print it."""
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    with FIGURES.open("a") as stream:
        stream.write(json.dumps({"key": key, **scores, "machine": machine}) + "\n")
    print(*key, {name: value for name, value in scores.items() if name != "search"}, flush=True)


@torch.no_grad()
def score(name: str, network: Any, own: Any, x: Tensor) -> dict[str, Any]:
    """The figures of a network beside `own`, the network that it came from."""
    batch, start = BATCH.get(name, 64), time.perf_counter()
    if name in RANDOM:
        wanted = own(x)
        found = {"error": float((network(x) - wanted).norm() / wanted.norm())}
    elif name == "minilm":
        vectors = [torch.cat([run(part) for part in x.split(batch)]) for run in (network, own)]
        cosines = F.cosine_similarity(*vectors).double()
        found = {"cosine": float(cosines.mean()), "least": float(cosines.min())}
    else:
        measured = parspike.perplexity(network, x.split(batch), against=own)
        found = {"tokens": measured.tokens, "perplexity": measured.perplexity, "ratio": measured.ratio,
                 "network": measured.network_perplexity, "agreement": measured.agreement}  # fmt: skip
    return {**found, "seconds of measuring": round(time.perf_counter() - start)}


def each(network: Any, x: Tensor) -> float:
    """Seconds of one batch, the second time."""
    with torch.no_grad():
        network(x)
        start = time.perf_counter()
        network(x)
    return round(time.perf_counter() - start, 3)


def run(name: str, options: argparse.Namespace) -> None:
    """Convert a network for each code, and measure it."""
    tokens = options.tokens or TOKENS.get(name, SEEN)
    done = {json.dumps(figure["key"]) for figure in figures()}
    analog = ", ".join([*["rotated"] * options.rotate, options.analog, *[options.spike] * bool(options.spike),
                        *["whole numbers"] * options.whole])  # fmt: skip
    how = options.encode, analog, options.recipe
    keys = {code: [name, *how, code, options.calibration, tokens, options.test] for code in options.codes}
    if all(json.dumps(key) in done for key in keys.values()):
        return
    numbers = options.calibration, options.test
    if name in RANDOM:
        torch.manual_seed(0)
        model = RANDOM[name]().eval()
        fitted, x = (random_inputs(name, number, seed) for seed, number in enumerate(numbers))
        example = x[:2]
    else:
        model = parspike.language(options.files / name)
        model = model.rotated() if options.rotate else model
        fitted, x = (
            drawn(model.tokenizer.sequences(options.files / "text" / part, tokens), number)
            for part, number in zip(("calibration", "test"), numbers, strict=True)
        )
        example = model.example()
    batch = BATCH.get(name, 64)
    planning = {} if options.encode == "none" else {"encode": options.encode, "analog": options.analog}
    planning |= {"layers": {options.spike: parspike.Spike()}} if options.spike else {}
    start = time.perf_counter()
    plan = parspike.plan(model, example, **planning)
    planned = round(time.perf_counter() - start)
    print(f"{name}: {len(plan.spiking)} layers of neurons, planned in {planned} s; {len(fitted)} sequences of "
          f"{tokens} tokens to fit, {len(x)} to measure", flush=True)  # fmt: skip
    left = sum(row.role == "analog" for row in plan.rows)
    for code, key in keys.items():
        if json.dumps(key) in done:
            continue
        T, kind = CODES[code]
        start, begun = time.perf_counter(), time.process_time()
        snn = parspike.convert(plan, fitted.split(batch), T=T, code=kind, recipe=options.recipe)
        if options.whole:
            snn = integers(snn, fitted.split(batch))
        spent, busy = round(time.perf_counter() - start), round(time.process_time() - begun)
        few = x[:batch]
        keep(key, {**score(name, snn, model, x), "seconds": spent, "processor seconds": busy,
                   "seconds of planning": planned, "seconds of a batch": each(snn, few),
                   "network's seconds of a batch": each(model, few),
                   "layers": len(plan.spiking), "analog": left,
                   "driven": parspike.measure(snn, few).driven,
                   "search": snn.provenance.get("search", {}),
                   "GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1)})  # fmt: skip
        if options.save:
            snn.save(options.save / f"{name}-{options.encode}-{code.replace(', ', '')}.parspike", force=True)


def table(before: str) -> str:
    """Markdown: a row a network and way of conversion, a column a code; of figures of one kind the last."""
    del before
    known: dict[tuple[Any, ...], dict[str, Any]] = {}
    for figure in figures():
        name, encode, analog, recipe, code, *sizes = figure["key"]
        if name in RANDOM or analog.startswith("lookup"):
            continue
        known.setdefault((name, encode, analog, recipe, *sizes), {})[code] = figure
    codes = [code for code in CODES if any(code in found for found in known.values())]
    columns = [*codes, "fit: processor time in s", "GB"]
    head = ["network and measure", "encoders, analog", "recipe", "fitted on, measured on", *columns]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (name, encode, analog, recipe, calibration, tokens, test), found in known.items():
        score, title, form = SHOWN[name]
        cells = ["–" if code not in found else form.format(found[code][score]) for code in codes]
        cells.append(", ".join(str(found[code]["processor seconds"]) for code in codes if code in found))
        cells.append(f"{max(figure['GB'] for figure in found.values()):g}")
        sizes = f"{calibration} and {test} × {tokens} tokens"
        rows.append(f"| {title} | {encode}, {analog} | {recipe or 'the default'} | {sizes} | {' | '.join(cells)} |")
    return "\n".join(rows)


def lookup_table(before: str) -> str:
    """Markdown: what is computed on means, and what becomes of it with neurons in its place, side by side."""
    del before
    known: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for figure in figures():
        name, encode, analog, recipe, code, *sizes = figure["key"]
        if encode == "all":
            known.setdefault((name, recipe, *sizes), {}).setdefault(analog, {})[code] = figure
    head = ["network and measure", "analog", *CODES_OF_LOOKUP, "accumulates", "operators left analog"]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (name, *_), both in known.items():
        if "lookup" not in both:
            continue
        score, title, form = SHOWN[name]
        for analog in sorted(both):
            found = both[analog]
            cells = ["–" if code not in found else form.format(found[code][score]) for code in CODES_OF_LOOKUP]
            last = list(found.values())[-1]
            cells += [f"{100 * last['driven']:.2f} %", str(last["analog"])] if "driven" in last else ["–", "–"]
            rows.append(f"| {title} | {analog} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*TOKENS, *RANDOM, []])
    parser.add_argument("--files", type=Path, default=ROOT.parent / "ext" / "lm", help="what language_files.py wrote")
    parser.add_argument("--encode", default="all", help="handed to parspike.plan: none, hidden or all")
    parser.add_argument("--analog", default="computed", help="handed to parspike.plan: computed or lookup")
    parser.add_argument("--rotate", action="store_true", help="the residual stream along other axes")
    parser.add_argument("--spike", help="activations, by pattern of their layers, that become neurons all the same")
    parser.add_argument("--whole", action="store_true", help="lowered to whole numbers, weights of 8 bits")
    parser.add_argument("--recipe", help="a recipe by name, or as JSON (default: that of parspike.convert)")
    parser.add_argument("--codes", nargs="+", choices=CODES, default=["weighted, 4", "weighted, 6", "weighted, 8"])
    parser.add_argument("--calibration", type=int, default=64, help="sequences to fit on")
    parser.add_argument("--test", type=int, default=64, help="sequences to measure on")
    parser.add_argument("--tokens", type=int, help="of a sequence")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", type=Path, help="a folder for the .parspike files")
    parser.add_argument("--render", type=Path)
    options = parser.parse_args()
    if options.render:
        put(options.render, "language", table)
        put(options.render, "lookup", lookup_table)
        return
    torch.set_num_threads(options.threads)
    torchvision_operators.declare()
    for name in options.networks or TOKENS:
        run(name, options)


if __name__ == "__main__":
    sys.exit(main())
