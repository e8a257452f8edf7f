"""What a training step costs in time and memory: ReLU, QCFS, and STBP at T = 4, side by side in one run.

    python benchmarks/training_cost.py [--network resnet18-cifar] [--batch 32] [--rounds 7] [--markdown FILE]

Time: the fastest of the rounds, in which the three take turns, so that all meet the same machine. Memory: the
highest that torch's allocator held during a step (GPU), or the growth of the process's peak (CPU), each network
in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from parspike.train import with_lif, with_qcfs
from parspike.train.networks import build

KINDS = ("ReLU", "QCFS", "QCFS, not compiled", "STBP, T = 4")


def make(kind: str, network: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    model = build(network, 10)
    if kind.startswith("QCFS"):
        model = with_qcfs(model, levels=4, fused=False if "not" in kind else None)
    elif kind.startswith("STBP"):
        model = with_lif(model, T=4)
    return model.to(device)


def stepper(kind: str, network: str, batch: int, device: str) -> Callable[[], None]:
    model = make(kind, network, device)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    x = torch.randn(batch, 3, 32, 32, device=device)
    y = torch.randint(0, 10, (batch,), device=device)

    def step() -> None:
        loss = F.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def seconds(args: argparse.Namespace) -> dict[str, float]:
    steps = {kind: stepper(kind, args.network, args.batch, args.device) for kind in KINDS}
    for step in steps.values():
        step()  # compiles
        step()
    # Processor time where there is a single thread: others may be using the machine.
    clock = time.process_time if args.device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(KINDS, float("inf"))
    for _ in range(args.rounds):
        for kind, step in steps.items():
            start = clock()
            step()
            best[kind] = min(best[kind], clock() - start)
    return best


def peak(kind: str, args: argparse.Namespace) -> int:
    """Bytes of tensors alive at the worst moment of a step."""
    step = stepper(kind, args.network, args.batch, args.device)
    step()
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    return most_alive(step)


def most_alive(step: Callable[[], None]) -> int:
    """Bytes of tensors that a step makes and that are alive at its worst moment, on the CPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    held = highest = 0
    for event in profiled.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18-cifar")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(json.dumps(peak(args.peak, args)))
        return
    memory = {}
    for kind in KINDS:
        command = [sys.executable, __file__, "--peak", kind, "--network", args.network, "--batch", str(args.batch)]
        done = subprocess.run([*command, "--device", args.device], check=True, capture_output=True, text=True)
        memory[kind] = int(done.stdout.splitlines()[-1])
    times = seconds(args)
    base_time, base_memory = times["ReLU"], memory["ReLU"]
    lines = ["| network | step | against ReLU | memory of a step | against ReLU |", "|---|---|---|---|---|"]
    lines += [
        f"| {kind} | {1e3 * times[kind]:.0f} ms | {times[kind] / base_time:.2f} "
        f"| {memory[kind] / 2**20:.0f} MiB | {memory[kind] / base_memory:.2f} |"
        for kind in KINDS
    ]
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} thread(s), {platform.machine()}"
    text = f"{args.network}, batch {args.batch}, {where}, torch {torch.__version__}\n\n" + "\n".join(lines)
    print(text)
    if args.markdown:
        args.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
