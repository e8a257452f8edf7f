"""Faults put into the code, one at a time: does a test notice? And which lines no test runs (docs/testing.md).

    make coverage                                 # all tests once, and which test runs which line
    python benchmarks/mutants.py run --each 12    # 12 mutants of a file, drawn with --seed; goes on where it stopped
    python benchmarks/mutants.py run --again      # the survivors once more, after tests were written
    python benchmarks/mutants.py survivors        # each with its place
    python benchmarks/mutants.py lines            # lines that tests run, by room
    python benchmarks/mutants.py page             # the tables of docs/testing.md

A mutant is one change of one function: an operator, a number, a condition, a call left out. One process imports
parspike and collects the tests; each mutant is tried in a copy of that process, where the function's code is replaced,
by the tests that ran the changed statement when they were recorded, then by the others of their files, until one
fails. So a mutant costs its tests and no start: cosmic-ray starts a process for each, ten seconds with torch, and
mutmut's wrappers around functions are not what `torch.export`, `inspect` and dataclasses expect. A mutant that makes a
test run for a minute counts as hanging, which is noticed too.

benchmarks/mutants.jsonl holds one line a mutant, benchmarks/mutants.toml why a survivor may survive.
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import importlib
import json
import os
import re
import resource
import signal
import sys
import time
import tomllib
import xml.etree.ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "src/parspike"
ROOMS = ("neurons", "engines", "calibrate", "lower", "graph/rewrite.py", "baselines", "train/methods")
GPU = ("kernels.py", "gpu_kernels.py")
"""Triton's kernels, which no CPU runs."""
RESULTS = ROOT / "benchmarks/mutants.jsonl"
REASONS = ROOT / "benchmarks/mutants.toml"
PAGE = ROOT / "docs/testing.md"
RECORD = ROOT / "build/coverage"
BUDGET = 20.0
"""Seconds of the processor after which no further test of a mutant begins; the line says how many were left out."""
HANGS = 60.0
"""Seconds of the processor beyond the budget that the last test may take. Tests of the gate take less than ten."""
NOT_TRIED = 77
"""How a process ends in which this script failed, not a test."""


# ---- mutants ---------------------------------------------------------------------------------------------------------

COMPARE: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Lt: ("<=", ">="), ast.LtE: ("<", ">"), ast.Gt: (">=", "<="), ast.GtE: (">", "<"), ast.Eq: ("!=",),
    ast.NotEq: ("==",), ast.Is: ("is not",), ast.IsNot: ("is",), ast.In: ("not in",), ast.NotIn: ("in",),
}  # fmt: skip
BINARY: dict[type[ast.operator], str] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "/", ast.Mod: "//", ast.Pow: "*",
    ast.LShift: ">>", ast.RShift: "<<", ast.BitAnd: "|", ast.BitOr: "&", ast.BitXor: "|",
}  # fmt: skip
SIGN: dict[type[ast.AST], str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is",
    ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in", ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/",
    ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**", ast.LShift: "<<", ast.RShift: ">>", ast.BitAnd: "&",
    ast.BitOr: "|", ast.BitXor: "^",
}  # fmt: skip
PAIRS = (
    ("floor", "ceil"), ("min", "max"), ("amin", "amax"), ("any", "all"), ("minimum", "maximum"), ("argmin", "argmax"),
    ("cumsum", "cumprod"), ("sum", "mean"), ("zeros", "ones"), ("zeros_like", "ones_like"), ("add", "sub"),
    ("mul", "div"), ("lower", "upper"), ("float64", "float32"),
)  # fmt: skip
OTHER = {one: two for pair in PAIRS for one, two in (pair, pair[::-1])} | {"round": "floor", "inf": "pi"}
"""Names whose exchange is a likely slip."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    line: where; first, last: the lines of its statement. start, end: the bytes that `text` replaces. old, new: the line
    before and after. inside: names of the classes and functions around it. function: the outermost function, which is
    replaced, as its qualified name and first line. number: which of equal changes of one function this is.
    """

    file: str
    line: int
    first: int
    last: int
    operator: str
    start: int
    end: int
    text: str
    old: str
    new: str
    inside: str
    function: tuple[str, int]
    number: int

    @property
    def name(self) -> str:
        """Stays when lines are added elsewhere."""
        text = f"{self.inside}|{self.operator}|{self.old}|{self.new}|{self.number}"
        return f"{self.file.removeprefix(SOURCE + '/')}:{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class Mutants(ast.NodeVisitor):
    """Every mutant of a file, inside functions. Left alone: defaults and constants of modules, annotations, docstrings,
    decorators, messages of errors."""

    def __init__(self, file: str) -> None:
        self.file, self.bytes = file, (ROOT / file).read_bytes()
        self.starts = [0]
        for line in self.bytes.split(b"\n"):
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.names: list[str] = []
        self.function: tuple[str, int] | None = None
        self.statement = (0, 0)
        self.found: list[Mutant] = []
        self.seen: Counter[tuple[str, ...]] = Counter()
        self.visit(ast.parse(self.bytes))

    def apply(self, mutant: Mutant) -> bytes:
        return self.bytes[: mutant.start] + mutant.text.encode() + self.bytes[mutant.end :]

    def span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        """The first byte of a node, and the one behind its last."""
        lines = node.lineno, node.end_lineno or node.lineno
        return self.starts[lines[0] - 1] + node.col_offset, self.starts[lines[1] - 1] + (node.end_col_offset or 0)

    def source(self, node: ast.expr) -> str:
        start, end = self.span(node)
        return self.bytes[start:end].decode()

    def change(self, operator: str, start: int, end: int, text: str) -> None:
        if self.function is None:
            return
        first, last = self.bytes.rfind(b"\n", 0, start) + 1, self.bytes.find(b"\n", end)
        old = self.bytes[first:last].decode().strip()
        new = (self.bytes[first:start] + text.encode() + self.bytes[end:last]).decode().strip()
        inside, line = ".".join(self.names), self.bytes.count(b"\n", 0, start) + 1
        key = (inside, operator, old, new)
        place = (self.file, line, *self.statement, operator, start, end, text, old, new, inside, self.function)
        self.found.append(Mutant(*place, self.seen[key]))
        self.seen[key] += 1

    def replace(self, operator: str, node: ast.expr | ast.stmt | ast.keyword, new: str) -> None:
        self.change(operator, *self.span(node), new)

    def between(self, operator: str, left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        """The operator lies between its operands, among brackets and spaces."""
        start, end = self.span(left)[1], self.span(right)[0]
        found = re.search(re.escape(old).replace(r"\ ", r"\s+").encode(), self.bytes[start:end])
        if found is not None:
            self.change(operator, start + found.start(), start + found.end(), new)

    # statements

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            before = self.statement
            head = getattr(node, "test", None) or getattr(node, "iter", None) or getattr(node, "subject", None)
            last = head.end_lineno if head is not None else node.end_lineno
            if isinstance(node, ast.With):
                last = node.items[-1].context_expr.end_lineno
            self.statement = (node.lineno, last or node.lineno)
            super().visit(node)
            self.statement = before
        else:
            super().visit(node)

    def inside(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        self.names.append(node.name)
        before, outermost = self.statement, self.function
        if isinstance(node, ast.FunctionDef):
            first = min(one.lineno for one in (node, *node.decorator_list))
            self.function = outermost or (".".join(self.names), first)
            for default in (*node.args.defaults, *node.args.kw_defaults):
                if outermost is not None and default is not None:
                    self.visit(default)
        for statement in node.body:
            self.visit(statement)
        self.statement, self.function = before, outermost
        self.names.pop()

    visit_FunctionDef = inside  # noqa: N815
    visit_ClassDef = inside  # noqa: N815

    def visit_Import(self, node: ast.Import) -> None: ...

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None: ...

    def visit_Raise(self, node: ast.Raise) -> None:
        self.replace("no error", node, "pass")

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not (isinstance(node.targets[0], ast.Name) and node.targets[0].id in {"__all__", "__slots__"}):
            self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        if isinstance(node.value, ast.Call):
            self.replace("no call", node, "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in BINARY:
            old, new = SIGN[type(node.op)] + "=", BINARY[type(node.op)] + "="
            self.between("operator", node.target, node.value, old, new)
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self.replace("no result", node.value, "None")
            self.generic_visit(node)

    def visit_Break(self, node: ast.Break) -> None:
        self.replace("loop", node, "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.replace("loop", node, "break")

    def condition(self, node: ast.If | ast.While | ast.IfExp) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        text = self.source(node.test)
        if not isinstance(node, ast.While):
            self.replace("condition", node.test, "(True or 0)" if text != "True" else "False")
        self.replace("condition", node.test, "False")
        self.generic_visit(node)

    visit_If = condition  # noqa: N815
    visit_While = condition  # noqa: N815
    visit_IfExp = condition  # noqa: N815

    # expressions

    def visit_Compare(self, node: ast.Compare) -> None:
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            for new in COMPARE.get(type(operator), ()):
                self.between("comparison", left, right, SIGN[type(operator)], new)
            left = right
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = (
            isinstance(one, ast.JoinedStr) or isinstance(getattr(one, "value", 0), str)
            for one in (node.left, node.right)
        )
        if type(node.op) in BINARY and not any(texts):
            self.between("operator", node.left, node.right, SIGN[type(node.op)], BINARY[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between("and, or", left, right, old, new)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub | ast.Not | ast.Invert):
            self.replace("sign, not", node, f"({self.source(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.replace("constant", node, str(not value))
        elif isinstance(value, int):
            self.replace("constant", node, str(value + 1))
            if value > 1:
                self.replace("constant", node, str(value - 1))
        elif isinstance(value, float):
            self.replace("constant", node, repr(value * 1.5 if value else 1.0))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None: ...

    def visit_Call(self, node: ast.Call) -> None:
        for word in node.keywords:
            if word.arg is not None and len(node.args) + len(node.keywords) > 1:
                start, end = self.span(word)
                after = re.match(rb"\s*,", self.bytes[end:])
                before = re.search(rb",\s*$", self.bytes[:start])
                if after is not None:
                    self.change("no argument", start, end + after.end(), "")
                elif before is not None:
                    self.change("no argument", before.start(), end, "")
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in OTHER:
            end = self.span(node)[1]
            self.change("name", end - len(node.attr.encode()), end, OTHER[node.attr])
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in {"min", "max", "any", "all"} and isinstance(node.ctx, ast.Load):
            self.replace("name", node, OTHER[node.id])


def files(rooms: tuple[str, ...] = ROOMS) -> list[str]:
    found: list[Path] = []
    for room in rooms:
        path = ROOT / SOURCE / room
        found += [path] if path.suffix else sorted(path.glob("*.py"))
    return [one.relative_to(ROOT).as_posix() for one in found if one.name not in (*GPU, "__init__.py")]


def sample(each: int, seed: int, rooms: tuple[str, ...]) -> list[tuple[Mutants, Mutant]]:
    """`each` mutants of every file, in an order that takes one of every file in turn. A mutant's place in the order
    follows from its name, so that a change elsewhere in the file draws the same ones."""
    drawn = []
    for file in files(rooms):
        mutants = Mutants(file)
        place = {one: hashlib.sha256(f"{seed}|{one.name}".encode()).digest() for one in mutants.found}
        drawn.append([(mutants, one) for one in sorted(place, key=place.__getitem__)[:each]])
    return [row[turn] for turn in range(each) for row in drawn if turn < len(row)]


# ---- tests -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """What `make coverage` recorded. lines: the tests that ran each line of each file; what stands there is run by
    imports too. seconds: of each test that passed. known: all tests of that time; later ones are new."""

    lines: dict[str, dict[int, set[str]]]
    seconds: dict[str, float]
    known: set[str]

    @classmethod
    def read(cls, folder: Path) -> Record:
        from coverage import CoverageData

        lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        wanted = set(files())
        for path in sorted(folder.glob("*.coverage*")):
            data = CoverageData(str(path))
            data.read()
            for file in (one for one in data.measured_files() if one[one.index(SOURCE) :] in wanted):
                for line, contexts in data.contexts_by_lineno(file).items():
                    lines[file[file.index(SOURCE) :]][line] |= {one.rpartition("|")[0] for one in contexts}
        seconds, known = {}, set()
        for path in sorted(folder.glob("*.xml")):
            for case in xml.etree.ElementTree.parse(path).iter("testcase"):
                name = name_of(case.get("classname", "").split("."), case.get("name", ""))
                known.add(name)
                if not any(child.tag in {"failure", "error", "skipped"} for child in case):
                    seconds[name] = float(case.get("time", 0))
        return cls(lines, seconds, known)

    def tests(self, mutant: Mutant, new: bool = False) -> list[str]:
        """The tests to try it with, in order.

        First those that ran its statement, and of these first those that ran a line next to it which few run: the body
        of the condition, say. Then file by file, from the file most of whose tests ran it: it is about this code, and
        what its tests share is made once. The others of these files follow, since what a fixture or a cache makes for
        several tests is run by the first of them alone. With `new`, tests that were not recorded come before all, of
        files a third of whose tests ran the statement, and of new files.
        """
        lines = self.lines.get(mutant.file, {})
        ran = set().union(*(lines.get(line, set()) for line in range(mutant.first, mutant.last + 1)))
        ran &= self.seconds.keys() & self.known
        each = Counter(name.partition("::")[0] for name in self.seconds.keys() & self.known)
        share = Counter(name.partition("::")[0] for name in ran)
        others = {name for name in self.seconds if name.partition("::")[0] in share} & self.known - ran

        near = [lines[line] for line in range(mutant.first, mutant.last + 4) if lines.get(line)]

        def place(name: str) -> tuple[int, float, str, float, str]:
            file, rare = name.partition("::")[0], min((len(names) for names in near if name in names), default=10**6)
            return rare, -share[file] / each[file], file, self.seconds[name], name

        about = {file for file, number in share.items() if new and number >= each[file] / 3}
        added = {
            name
            for name in self.seconds.keys() - self.known
            if new and ((file := name.partition("::")[0]) in about or not each[file])
        }
        return [*sorted(added), *sorted(ran | others, key=place)]


def name_of(places: list[str], test: str) -> str:
    """pytest's name of a test: its file, the classes around it, and its own."""
    whole = range(1, len(places) + 1)
    end = next((n for n in whole if ROOT.joinpath(*places[:n]).with_suffix(".py").exists()), len(places))
    return "::".join(["/".join(places[:end]) + ".py", *places[end:], test])


# ---- one mutant, one process -----------------------------------------------------------------------------------------


def codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and those of the functions inside it, in the order of the text."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from codes(one)


def named(code: CodeType, function: tuple[str, int]) -> CodeType | None:
    found = (one for one in codes(code) if (one.co_qualname, one.co_firstlineno) == function)
    return next(found, None)


class Functions:
    """The functions in memory by their code, as found once everything is imported."""

    def __init__(self) -> None:
        gc.unfreeze()  # tests/conftest.py hides from gc what is there before the first test
        self.of: dict[tuple[str, str, int], list[FunctionType]] = defaultdict(list)
        for one in gc.get_objects():
            if type(one) is FunctionType and SOURCE in one.__code__.co_filename:
                self.of[self.key(one.__code__)].append(one)
        gc.freeze()

    @staticmethod
    def key(code: CodeType) -> tuple[str, str, int]:
        file = code.co_filename
        return file[file.index(SOURCE) :], code.co_qualname, code.co_firstlineno

    def put(self, mutants: Mutants, mutant: Mutant) -> bool:
        """Replace the code of the mutant's function, and of functions that it has made. Whether there were any."""
        loaded = [one for key, these in self.of.items() if key[0] == mutant.file for one in these]
        path = loaded[0].__code__.co_filename if loaded else mutant.file
        old = named(compile(mutants.bytes, path, "exec"), mutant.function)
        new = named(compile(mutants.apply(mutant), path, "exec"), mutant.function)
        if old is None or new is None:
            return False
        before, after = list(codes(old)), list(codes(new))
        if [one.co_name for one in before] != [one.co_name for one in after]:
            before, after = [old], [new]  # a lambda or comprehension went away with the change
        found = False
        for one, other in zip(before, after, strict=True):
            for function in self.of[self.key(one)]:
                if function.__code__.co_freevars == other.co_freevars:
                    function.__code__ = other
                    found = True
        return found


@dataclass
class Trial:
    """A mutant that is being tried in a process."""

    mutants: Mutants
    mutant: Mutant
    tests: list[str]
    process: int
    answer: int
    began: float
    until: float

    def line(self, outcome: str, by: str, ran: int) -> dict[str, object]:
        mutant = self.mutant
        return {
            "mutant": mutant.name, "line": mutant.line, "in": mutant.inside, "operator": mutant.operator,
            "old": mutant.old, "new": mutant.new, "outcome": outcome, "by": by, "tests": ran,
            "left_out": len(self.tests) - ran, "seconds": round(time.monotonic() - self.began, 1),
        }  # fmt: skip

    def ended(self) -> dict[str, object] | None:
        """The line of the result; nothing while the process runs."""
        done, status = os.waitpid(self.process, os.WNOHANG)
        if not done:
            if time.monotonic() > self.until:
                os.killpg(self.process, signal.SIGKILL)
            return None
        text = os.read(self.answer, 10_000).decode()
        os.close(self.answer)
        ran, by = json.loads(text) if text else (0, "")
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return self.line("hangs" if number in {signal.SIGXCPU, signal.SIGKILL} else "killed", f"signal {number}", 0)
        if os.WEXITSTATUS(status) == NOT_TRIED:
            return self.line("not tried", by, ran)
        if os.WEXITSTATUS(status):
            return self.line("killed", by or f"exit {os.WEXITSTATUS(status)}", ran)
        return self.line("survived" if ran else "not run", "", ran)


class Driver:
    """A plugin that tries mutants in the place where pytest would run what it has collected."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.record = Record.read(options.record)
        self.failed: str | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self.record.seconds.update({name: 0.0 for name in self.items if name not in self.record.known})
        for name in self.record.seconds.keys() - self.items.keys():
            del self.record.seconds[name]
        for file in files(self.options.rooms):
            importlib.import_module(file.removeprefix("src/").removesuffix(".py").replace("/", "."))
        self.functions = Functions()
        work = todo(self.options)
        print(f"\n{len(work)} mutants to try with {len(self.record.seconds)} tests", flush=True)
        running: list[Trial] = []
        while work or running:
            while work and len(running) < self.options.jobs:
                running.append(self.start(*work.pop(0)))
            time.sleep(0.02)
            for trial in list(running):
                line = trial.ended()
                if line is not None:
                    running.remove(trial)
                    with self.options.out.open("a", encoding="utf-8") as out:
                        print(json.dumps(line, ensure_ascii=False), file=out)
                    print(len(work), line["mutant"], line["outcome"], line["by"], line["seconds"], flush=True)
        return True

    def start(self, mutants: Mutants, mutant: Mutant) -> Trial:
        tests = self.record.tests(mutant, self.options.again)
        mine, other = os.pipe()
        process = os.fork()
        if not process:
            os.close(mine)
            self.child(mutants, mutant, tests, other)
        os.close(other)
        now = time.monotonic()
        return Trial(mutants, mutant, tests, process, mine, now, now + 10 * (self.options.budget + HANGS))

    def child(self, mutants: Mutants, mutant: Mutant, tests: Sequence[str], answer: int) -> None:
        """Never returns."""
        code = NOT_TRIED
        try:
            os.setsid()
            allowed = int(self.options.budget + HANGS)
            resource.setrlimit(resource.RLIMIT_CPU, (allowed, allowed + 5))
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            self.failed = None
            if tests and not self.functions.put(mutants, mutant):
                raise LookupError(f"{mutant.function} is not in memory")
            items = [self.items[name] for name in tests]
            ran = 0
            for item, after in zip(items, [*items, None][1:], strict=True):
                if self.failed is not None or time.process_time() > self.options.budget:
                    break
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                ran += 1
            os.write(answer, json.dumps([ran, self.failed or ""]).encode())
            code = int(self.failed is not None)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told
            os.write(answer, json.dumps([0, repr(error)]).encode())
        finally:
            os._exit(code)


def lines_of(path: Path) -> dict[str, dict]:
    """The results by mutant; of several lines of one the last counts."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {line["mutant"]: line for line in map(json.loads, lines)}


def todo(options: argparse.Namespace) -> list[tuple[Mutants, Mutant]]:
    done = lines_of(options.out)
    if options.again:
        explained = reasons()
        wanted = {name for name, line in done.items() if unnoticed(line) and name not in explained}
        return [one for one in sample(10**6, options.seed, options.rooms) if one[1].name in wanted]
    return [one for one in sample(options.each, options.seed, options.rooms) if one[1].name not in done]


def run(options: argparse.Namespace) -> None:
    import hypothesis

    # A failing example is enough: none is made smaller, none is kept.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", phases=phases, database=None, deadline=None)
    hypothesis.settings.load_profile("mutants")
    os.chdir(ROOT)
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", "-m", ""]
    sys.exit(pytest.main([*words, *(options.tests or ["src", "tests"])], plugins=[Driver(options)]))


# ---- what is shown ---------------------------------------------------------------------------------------------------


def reasons() -> dict[str, str]:
    """Why a survivor may survive, by mutant."""
    groups = tomllib.loads(REASONS.read_text("utf-8")).get("reason", []) if REASONS.exists() else []
    return {name: group["why"] for group in groups for name in group["mutants"]}


def room_of(file: str) -> str:
    return file.removeprefix(SOURCE + "/").partition("/")[0].removesuffix(".py")


def results(out: Path) -> dict[str, dict]:
    """The results of mutants that the code still has."""
    there = {mutant.name for file in files() for mutant in Mutants(file).found}
    return {n: line for n, line in lines_of(out).items() if n in there and line["outcome"] != "not tried"}


def unnoticed(line: dict) -> bool:
    return line["outcome"] in {"survived", "not run"}


def survivors(options: argparse.Namespace) -> int:
    """Survivors without a reason; how many."""
    explained = reasons()
    open_ones = [line for name, line in results(options.out).items() if unnoticed(line) and name not in explained]
    for line in open_ones:
        print(
            f"{line['mutant']}  {SOURCE}/{line['mutant'].partition(':')[0]}:{line['line']}  {line['outcome']}", end=""
        )
        print(f" {line['tests']} tests, {line['left_out']} left out\n    {line['old']}\n    {line['new']}")
    return len(open_ones)


def table_of_mutants(out: Path) -> list[str]:
    explained, found = reasons(), results(out)
    columns = (
        "tried",
        "killed",
        "hang",
        "survived",
        "explained",
        "open: budget spent",
        "open: no test runs it",
        "open",
    )
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for name, line in found.items():
        kinds = ["tried"]
        if not unnoticed(line):
            kinds += ["killed"] + ["hang"] * (line["outcome"] == "hangs")
        elif name in explained:
            kinds += ["survived", "explained"]
        elif line["outcome"] == "not run":
            kinds += ["survived", "open: no test runs it"]
        else:
            kinds += ["survived", "open: budget spent" if line["left_out"] else "open"]
        for room in (name.partition(":")[0].partition("/")[0], "all"):
            rows[room].update(kinds)
    order = [room_of(f"{SOURCE}/{room}") for room in ROOMS] + ["all"]
    head = ["| " + " | ".join(["room", *columns]) + " |", "|" + "---|" * (len(columns) + 1)]
    body = ["| " + " | ".join([room, *(f"{rows[room][key]}" for key in columns)]) + " |" for room in order]
    groups: dict[str, list[dict]] = defaultdict(list)
    for name, line in found.items():
        if unnoticed(line) and name in explained:
            groups[explained[name]].append(line)
    why = ["", "What survives, and why it may:", ""]
    for reason, lines in groups.items():
        places = Counter(f"`{line['mutant'].partition(':')[0]}` `{line['in']}`" for line in lines)
        why.append(f"- {reason}: " + ", ".join(f"{place} ({n})" if n > 1 else place for place, n in places.items()))
    return [*head, *body, *(why if groups else [])]


def lines_by_room(folder: Path) -> dict[str, tuple[int, int]]:
    """Lines that can be run and those that a test ran, by room."""
    import coverage

    measured = coverage.Coverage(data_file=None, config_file=str(ROOT / "pyproject.toml"))
    for path in sorted(folder.glob("*.coverage")):
        data = coverage.CoverageData(str(path))
        data.read()
        measured.get_data().update(data)
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for path in sorted((ROOT / SOURCE).rglob("*.py")):
        if path.name not in GPU:
            _, lines, _, missing, _ = measured.analysis2(str(path))
            one = found[room_of(path.relative_to(ROOT).as_posix())]
            one[0] += len(lines)
            one[1] += len(lines) - len(missing)
    return {room: (lines, ran) for room, (lines, ran) in found.items()}


def table_of_lines(folder: Path) -> list[str]:
    rooms = lines_by_room(folder)
    total = tuple(map(sum, zip(*rooms.values(), strict=True)))
    order = sorted(rooms.items(), key=lambda one: one[1][1] / max(one[1][0], 1))
    rows = [f"| `{room}` | {lines:,} | {ran / max(lines, 1):.1%} |" for room, (lines, ran) in order]
    return [
        "| room | lines | run by a test |",
        "|---|---|---|",
        f"| all | {total[0]:,} | {total[1] / total[0]:.1%} |",
        *rows,
    ]


def page(options: argparse.Namespace) -> None:
    """Write both tables between their marks. That of lines stays where nothing was recorded."""
    text = PAGE.read_text("utf-8")
    tables = {"mutants": table_of_mutants(options.out)}
    if any(options.record.glob("*.coverage")):
        tables["lines"] = table_of_lines(options.record)
    for name, lines in tables.items():
        before, rest = text.split(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n" + "\n".join(lines) + "\n<!-- end -->" + rest.partition("<!-- end -->")[2]
    PAGE.write_text(text, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "survivors", "lines", "page"])
    parser.add_argument("--each", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", type=lambda text: tuple(text.split(",")), default=ROOMS)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--budget", type=float, default=BUDGET)
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tests", nargs="*")
    options = parser.parse_args()
    if options.what == "run":
        run(options)
    elif options.what == "survivors":
        sys.exit(min(survivors(options), 1))
    elif options.what == "lines":
        print("\n".join(table_of_lines(options.record)))
    else:
        page(options)


if __name__ == "__main__":
    main()
