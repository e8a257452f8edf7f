"""Every method of training on one network and data set: accuracy, seconds and memory, for docs/results-training.md.

    OMP_NUM_THREADS=1 python benchmarks/direct_training.py                   # all methods, seeds 0 1 2, on the digits
    python benchmarks/direct_training.py --methods psn tet --seeds 0
    python benchmarks/direct_training.py --render docs/results-training.md

One JSON line a run goes to benchmarks/direct_training.jsonl, kept with the code; what stands there already is not run
again. Each run is a process of its own. Seconds: of the training loop, with the score of each epoch. Memory: MiB of
tensors alive at the worst moment of one training step. `--render` writes the table between the marks in the page.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from few_steps import put
from training_cost import most_alive

from parspike.cli.images import open_images
from parspike.cli.preprocess import Preprocessing
from parspike.train import METHODS, Arrays, Devices, decode, fit, load_recipe, make_network

FIGURES = Path(__file__).with_suffix(".jsonl")


def figures() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FIGURES.read_text().splitlines()] if FIGURES.is_file() else []


def run(method: str, seed: int, recipe: str) -> dict[str, Any]:
    """Train once, in this process."""
    made = load_recipe(recipe).replace({"activation.method": method, "seed": seed})

    def split(name: str) -> Arrays:
        source = open_images("digits", Preprocessing(), split=name, batch_size=256)
        return decode(source, len(source))

    train, test = split("train"), split("test")
    x, y = train.take(torch.arange(made.optimiser.batch_size), 0)
    example = train.take(torch.arange(0, len(train), len(train) // 256)[:256], 0)[0]
    with tempfile.TemporaryDirectory() as folder:
        model = make_network(made, None, example)
        began = time.process_time()
        result = fit(made, model, train, test, folder, devices=Devices("cpu", 1))
        seconds = time.process_time() - began
    model = make_network(made, None, example).train()

    def step() -> None:
        loss = made.activation.loss(made.activation.outputs(model, x), y, 0.0) + made.activation.penalty(model)
        loss.backward()
        model.zero_grad()

    step()  # compiles
    return {
        "key": [recipe, method, seed], "network": recipe, "method": method,
        "T": made.to_json()["activation"].get("T"), "accuracy": 100 * result.accuracy, "seconds": round(seconds, 2),
        "memory_mib": round(most_alive(step) / 2**20, 2), "images": len(test), "epochs": result.epoch,
        "activation": made.to_json()["activation"],
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }  # fmt: skip


def measure(options: argparse.Namespace) -> None:
    done = {json.dumps(figure["key"]) for figure in figures()}
    for seed in options.seeds:
        for method in options.methods:
            if json.dumps([options.recipe, method, seed]) in done:
                continue
            command = [sys.executable, __file__, "--recipe", options.recipe, "--one", method, str(seed)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            figure = json.loads(said.splitlines()[-1])
            with FIGURES.open("a") as stream:
                stream.write(json.dumps(figure, ensure_ascii=False) + "\n")
            print(f"{method} seed {seed}: {figure['accuracy']:.2f} %, {figure['seconds']:.1f} s", flush=True)


def table() -> str:
    """Markdown: a row a method, mean over seeds ± standard deviation."""
    rows = figures()
    lines = [
        f"Top-1 accuracy on {rows[0]['images']} test images after {rows[0]['epochs']} epochs, mean ± standard "
        "deviation over seeds. Seconds: processor time of a training, median. Memory: tensors alive at the worst "
        f"moment of a step of 64 images. {rows[0]['machine']}.",
        "", "| method | T | seeds | accuracy | seconds | memory of a step |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for method in METHODS:
        mine = [row for row in rows if row["key"][1] == method]
        if mine:
            accuracy = [row["accuracy"] for row in mine]
            spread = f" ± {statistics.stdev(accuracy):.2f}" if len(mine) > 1 else ""
            lines.append(
                f"| {method} | {mine[0]['activation'].get('T', '–')} | {len(mine)} "
                f"| {statistics.mean(accuracy):.2f}{spread} | {statistics.median(row['seconds'] for row in mine):.1f} "
                f"| {statistics.median(row['memory_mib'] for row in mine):.1f} MiB |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--recipe", default="digits", help="of the digits, by name or as a .toml file")
    parser.add_argument("--render", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(options.one[0], int(options.one[1]), options.recipe)))
    elif options.render:
        put(options.render, "direct_training", lambda before: table())
    else:
        measure(options)


if __name__ == "__main__":
    main()
