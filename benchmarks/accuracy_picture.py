"""docs/accuracy.svg: accuracy against T beside the network itself, from the tables of docs/results.md.

python benchmarks/accuracy_picture.py
"""

from __future__ import annotations

import re
from pathlib import Path

from parspike.tables import COLOURS, drawn, new_figure

DOCS = Path(__file__).resolve().parents[1] / "docs"
SHOWN = {"resnet20": "ResNet-20, CIFAR-10", "resnet56": "ResNet-56, CIFAR-10", "lite0": "EfficientNet-Lite0, ImageNet"}


def table(text: str, network: str) -> tuple[float, dict[str, dict[int, float]]]:
    """The accuracy of the network itself, and by recipe (the first row of each) that at every T."""
    found = re.search(rf"<!-- few_steps {network} -->\n(.*?)<!-- end -->", text, re.DOTALL)
    own = re.search(r"itself ([\d.]+) %", found[1]) if found else None
    if found is None or own is None:
        raise SystemExit(f"docs/results.md has no table of {network}")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines() if line[:1] == "|"]
    steps = {place: int(head[2:]) for place, head in enumerate(lines[0]) if head.startswith("T=")}
    rows: dict[str, dict[int, float]] = {}
    for cells in lines[2:]:
        row = {T: float(cells[place].split()[0]) for place, T in steps.items() if cells[place] != "–"}
        rows.setdefault(cells[0], row)
    return float(own[1]), rows


def main() -> None:
    text = (DOCS / "results.md").read_text("utf-8")
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    for (network, title), colour in zip(SHOWN.items(), COLOURS, strict=False):
        own, rows = table(text, network)
        axes.axhline(own, color=colour, linestyle="--", linewidth=1)
        axes.plot(list(rows["auto"]), list(rows["auto"].values()), "o-", color=colour, label=title)
        if network == "resnet20":
            axes.plot(list(rows["max"]), list(rows["max"].values()), "x:", color=colour,
                      label="the same, thresholds = largest activation")  # fmt: skip
    axes.set(xlabel="time-steps T", ylabel="accuracy (%)", xscale="log", ylim=(0, 100))
    axes.set_xticks([1, 2, 4, 8, 15], ["1", "2", "4", "8", "15"])
    axes.minorticks_off()
    axes.legend(loc="lower right", fontsize="small", title="dashed: the network itself")
    (DOCS / "accuracy.svg").write_bytes(drawn(figure, ".svg"))


if __name__ == "__main__":
    main()
