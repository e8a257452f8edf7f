"""docs/architecture.md against the code: who imports whom, what is public, what an import costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import parspike

SOURCE = Path(parspike.__file__).parent
DOCUMENT = Path(__file__).parents[1] / "docs" / "architecture.md"
PUBLIC = set(parspike.__all__) - {"errors"}
NAMES = re.compile(r"`(\w+)`")


def table(*head: str) -> list[list[str]]:
    """The rows of the table of architecture.md that has this head."""
    lines = DOCUMENT.read_text().splitlines()
    start = lines.index("| " + " | ".join(head) + " |") + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


ALLOWED = {
    NAMES.findall(room)[0]: NAMES.findall(cell) for room, _, cell in table("room", "what it holds", "may import")
}
EXCEPTIONS = {(NAMES.findall(one)[0], NAMES.findall(two)[0]): why for one, two, why in table("from", "to", "reason")}


def imports(path: Path, source: Path = SOURCE) -> Iterator[tuple[str, int, bool]]:
    """Every room that a file imports, with the line and whether it stands at the top of the file."""
    inside = path.relative_to(source.parent).parts[:-1]
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(inside[: len(inside) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == source.name:
                # `import parspike` and `from parspike import convert` take public names, not rooms.
                public = not rest or (
                    path.parent.name == "cli" and name == f"{module_of(node)}.{rest}" and rest in PUBLIC
                )
                yield "__init__" if public else rest.split(".")[0], node.lineno, node in tree.body


def module_of(node: ast.AST) -> str:
    return (node.module or "") if isinstance(node, ast.ImportFrom) else ""


def room_of(path: Path, source: Path = SOURCE) -> str:
    return path.relative_to(source).parts[0].removesuffix(".py")


def violations(source: Path = SOURCE) -> list[str]:
    found = []
    for path in sorted(source.rglob("*.py")):
        here = room_of(path, source)
        for room, line, top in imports(path, source):
            allowed = room in (here, *ALLOWED.get(here, ())) or ((here, room) in EXCEPTIONS and not top)
            if not allowed:
                found.append(f"{path.relative_to(source)}:{line}: `{here}` may not import `{room}`")
    return found


def test_rooms_are_those_of_the_table() -> None:
    files = {room_of(path) for path in SOURCE.rglob("*.py")}
    assert files == set(ALLOWED), "docs/architecture.md, table of rooms"


def test_imports_are_those_of_the_table() -> None:
    assert not violations(), "\n".join(violations())


def test_imports_go_downwards_only() -> None:
    order = list(ALLOWED)
    for room, others in ALLOWED.items():
        for other in others:
            assert order.index(other) < order.index(room), f"`{room}` imports `{other}`, which stands below it"
    for (room, other), reason in EXCEPTIONS.items():
        assert order.index(other) > order.index(room), f"`{room}` → `{other}` is no exception"
        assert len(reason) > 20


def test_exceptions_are_still_needed() -> None:
    real = {(room_of(path), room) for path in SOURCE.rglob("*.py") for room, _, _ in imports(path)}
    assert set(EXCEPTIONS) <= real


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("neurons/new.py", "from parspike.graph import walk"),
        ("neurons/new.py", "from ..graph import walk"),
        ("neurons/new.py", "from .. import graph"),
        ("graph/new.py", "def f():\n    import parspike.engines.count"),
        ("engines/new.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from parspike.snn import SNN"),
        ("plan.py", "from parspike import convert"),
        ("snn.py", "from parspike.file import save"),
        ("cli/new.py", "from parspike.graph.ops import TABLE"),
        ("cli/new.py", "import parspike.calibrate"),
    ],
)
def test_a_forbidden_import_is_found(room: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "parspike" / room
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert len(violations(tmp_path / "parspike")) == 1


# ----------------------------------------------------------------------------------------------- public names


def test_public_names() -> None:
    names = parspike.__all__
    assert len(set(names)) == len(names)
    # ruff's order of __all__: constants, classes, functions, each in the order of the alphabet.
    assert names == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
    bound = {
        name
        for name in dir(parspike)
        if not name.startswith("_") and not (inspect.ismodule(getattr(parspike, name)) and name not in names)
    }
    assert bound == set(names)
    for name in names:
        assert inspect.getdoc(getattr(parspike, name)), f"parspike.{name} has no docstring"


@pytest.mark.parametrize("package", ["parspike", "parspike.train"])
def test_names_for_type_checkers_are_those_that_are_found(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__ or "").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    said = {
        alias.name: f"{node.module}" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(said) == set(module.__all__) - {"ParspikeError", "errors"}
    for name, home in said.items():
        assert getattr(module, name) is getattr(sys.modules[home], name)
        assert name in dir(module)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_a_function_of_a_modules_name_stays_the_function() -> None:
    code = """if True:
        import sys, parspike.convert, parspike.plan, parspike.measure.report, parspike.tune, parspike.sweep.result
        import parspike.bench.file, parspike.report.page, parspike.view.serve
        from parspike import convert
        import parspike
        names = ("convert", "plan", "measure", "tune", "sweep", "bench", "report", "view")
        assert all(getattr(parspike, name) is getattr(sys.modules[f"parspike.{name}"], name) for name in names)
        assert parspike.convert is convert
        assert parspike.neurons.ParallelNeuron  # modules are found as well
    """
    env = {**os.environ, "PYTHONPATH": str(SOURCE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_one_version() -> None:
    built = tomllib.loads((DOCUMENT.parents[1] / "pyproject.toml").read_text())
    assert "version" in built["project"]["dynamic"]
    assert built["tool"]["hatch"]["version"]["path"] == "src/parspike/version.py"
    snn = parspike.convert(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()).eval(), torch.rand(4, 2), T=2)
    assert snn.provenance["versions"]["parspike"] == parspike.__version__


def modules() -> list[str]:
    return [m.name for m in pkgutil.walk_packages(parspike.__path__, "parspike.") if not m.name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_every_public_thing_says_what_it_is(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("parspike"):
            raise
        pytest.skip(f"needs an extra: {error.name}")
    assert module.__doc__
    for key in getattr(module, "__all__", ()):
        assert hasattr(module, key), f"{name}.__all__ names '{key}', which does not exist"
    for key, value in vars(module).items():
        if key.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), f"{name}.{key} has no docstring"


@pytest.mark.parametrize("name", [name for name in parspike.__all__ if inspect.isclass(getattr(parspike, name))])
def test_every_method_of_a_public_class_says_what_it_does(name: str) -> None:
    kind = getattr(parspike, name)
    for method, value in inspect.getmembers(kind):
        if method in vars(kind) and not method.startswith("_") and (callable(value) or isinstance(value, property)):
            assert inspect.getdoc(value), f"parspike.{name}.{method} has no docstring"


def test_import_is_quiet_and_brings_no_extra() -> None:
    unwanted = ["torchvision", "timm", "typer", "click", "rich", "sklearn", "skimage", "PIL", "matplotlib",
                "h5py", "bokeh", "tornado", "parspike.cli", "parspike.train"]  # fmt: skip
    code = (
        f"import sys, parspike\n"
        f"[sys.exit(m) for m in ('torch', 'numpy') if m in sys.modules]\n"
        f"[getattr(parspike, name) for name in parspike.__all__]\n"
        f"[sys.exit(m) for m in {unwanted} if m in sys.modules]\n"
        f"parspike.lower.prove, parspike.baselines.TBC, parspike.train.with_qcfs"  # as pages write them
    )
    env = {**os.environ, "PYTHONPATH": str(SOURCE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_line_and_the_library_bound_T_alike() -> None:
    """The command line keeps a copy of the bound, since the library's stands beside an import of torch."""
    from parspike.cli.options import MAX_T

    assert MAX_T == parspike.neurons.MAX_T
