"""Language models converted: SmolLM2-135M by its perplexity on text, MiniLM by the cosine of its sentence vectors.

    python benchmarks/language_files.py ../ext/lm        # once: networks and text; its first lines say how
    python benchmarks/language.py smollm2 --calibration 16 --test 16
    python benchmarks/language.py minilm --calibration 128 --test 200 --codes "weighted, 4" "weighted, 6"
    python benchmarks/language.py minilm --analog lookup                             # softmax, norms, divisions too
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
from torch import Tensor

import parspike

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
TOKENS = {"smollm2": 256, "minilm": 64}
BATCH = {"smollm2": 4, "minilm": 16}
SHOWN = {
    "smollm2": ("ratio", "SmolLM2-135M, perplexity / the network's", "{:.3f}"),
    "minilm": ("cosine", "all-MiniLM-L6-v2, mean cosine with the network's vectors", "{:.4f}"),
}


def drawn(sequences: Tensor, number: int) -> Tensor:
    """A seeded choice of sequences."""
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0))
    return sequences[order[:number]]


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
    batch, start = BATCH[name], time.perf_counter()
    if name == "minilm":
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
    tokens = options.tokens or TOKENS[name]
    done = {json.dumps(figure["key"]) for figure in figures()}
    how = options.encode, options.analog, options.recipe
    keys = {code: [name, *how, code, options.calibration, tokens, options.test] for code in options.codes}
    if all(json.dumps(key) in done for key in keys.values()):
        return
    model = parspike.language(options.files / name)
    fitted, x = (
        drawn(model.tokenizer.sequences(options.files / "text" / part, tokens), number)
        for part, number in (("calibration", options.calibration), ("test", options.test))
    )
    planning = {} if options.encode == "none" else {"encode": options.encode, "analog": options.analog}
    start = time.perf_counter()
    plan = parspike.plan(model, model.example(), **planning)
    planned = round(time.perf_counter() - start)
    print(f"{name}: {len(plan.spiking)} layers of neurons, planned in {planned} s; {len(fitted)} sequences of "
          f"{tokens} tokens to fit, {len(x)} to measure", flush=True)  # fmt: skip
    for code, key in keys.items():
        if json.dumps(key) in done:
            continue
        T, kind = CODES[code]
        start, begun = time.perf_counter(), time.process_time()
        snn = parspike.convert(plan, fitted.split(BATCH[name]), T=T, code=kind, recipe=options.recipe)
        spent, busy = round(time.perf_counter() - start), round(time.process_time() - begun)
        few = x[: BATCH[name]]
        keep(key, {**score(name, snn, model, x), "seconds": spent, "processor seconds": busy,
                   "seconds of planning": planned, "seconds of a batch": each(snn, few),
                   "network's seconds of a batch": each(model, few),
                   "layers": len(plan.spiking), "search": snn.provenance.get("search", {}),
                   "GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1)})  # fmt: skip
        if options.save:
            snn.save(options.save / f"{name}-{options.encode}-{code.replace(', ', '')}.parspike", force=True)


def table(before: str) -> str:
    """Markdown: a row a network and way of conversion, a column a code; of figures of one kind the last."""
    del before
    known: dict[tuple[Any, ...], dict[str, Any]] = {}
    for figure in figures():
        name, encode, analog, recipe, code, *sizes = figure["key"]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*TOKENS, []])
    parser.add_argument("--files", type=Path, default=ROOT.parent / "ext" / "lm", help="what language_files.py wrote")
    parser.add_argument("--encode", default="all", help="handed to parspike.plan: none, hidden or all")
    parser.add_argument("--analog", default="computed", help="handed to parspike.plan: computed or lookup")
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
        return
    torch.set_num_threads(options.threads)
    torchvision_operators.declare()
    for name in options.networks or TOKENS:
        run(name, options)


if __name__ == "__main__":
    sys.exit(main())
