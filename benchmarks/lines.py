"""Lines of code by room: the table of docs/architecture.md.

    python benchmarks/lines.py

A line counts that holds code: no blank line, no comment, no docstring.
"""

from __future__ import annotations

import ast
import tokenize
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src/parspike"
PAGE = ROOT / "docs/architecture.md"
NOTHING = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def lines_of(path: Path) -> int:
    """
    >>> lines_of(SOURCE / "__main__.py") < len((SOURCE / "__main__.py").read_text().splitlines())
    True
    """
    text = path.read_text("utf-8")
    said: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            said.update(range(node.lineno, (node.end_lineno or 0) + 1))
    with tokenize.open(path) as stream:
        tokens = [t for t in tokenize.generate_tokens(stream.readline) if t.type not in NOTHING]
    return len({n for t in tokens for n in range(t.start[0], t.end[0] + 1)} - said)


def table() -> list[str]:
    rooms: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE)
        rooms[place.parts[0].removesuffix(".py")].append((lines_of(path), place.as_posix()))
    sums = {room: sum(lines for lines, _ in files) for room, files in rooms.items()}
    rows = [
        f"| `{room}` | {sums[room]:,} | {len(rooms[room])} | {max(rooms[room])[0]:,} (`{max(rooms[room])[1]}`) |"
        for room in sorted(rooms, key=lambda room: -sums[room])
    ]
    files = [file for room in rooms.values() for file in room]
    most = max(files)
    return [
        "| room | lines | files | its largest file |",
        "|---|---|---|---|",
        f"| all | {sum(sums.values()):,} | {len(files)} | {most[0]:,} (`{most[1]}`) |",
        *rows,
    ]


def main() -> None:
    before, rest = PAGE.read_text("utf-8").split("<!-- lines -->\n")
    _, after = rest.split("<!-- end -->")
    PAGE.write_text(f"{before}<!-- lines -->\n" + "\n".join(table()) + f"\n<!-- end -->{after}", "utf-8")


if __name__ == "__main__":
    main()
