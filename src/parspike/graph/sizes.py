"""Which sizes of an input may vary beside the batch: height and width of images, length of audio, number of tokens.

Free sizes are detected automatically; the user does not declare them. `trace` lets `torch.export` follow the network
with every size open, and reads what the code came to rely on. A condition with a number on one side (a linear layer
behind `flatten`, a table of positions) *fixes* the sizes in it, as the number says that the network was made for them.
Every other condition (a least size, a multiple of 32, a branch on the size) is a *limit* that inputs are checked
against. A size that is neither is free, and every number that is computed from it stays a `Size` in the graph.

The result is then tested: the graph must give the model's own output on inputs of another size. If anything goes wrong
(tracing fails, an expression is not understood, an operator on the sizes has no rule, neurons would have a free number
of channels, the test fails), all sizes are fixed and the network is traced for the example's. So a free size can never
be the reason of a refusal.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from sympy import Integer, Mul, Poly, div
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.fx.experimental import _config
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._sympy.functions import FloorDiv
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from parspike.errors import TraceError
from parspike.graph.ir import BATCH, Graph, Size, leaves

__all__ = [
    "Conditions",
    "GuardWatch",
    "batch_limits",
    "conditions",
    "left_out",
    "other_sizes",
    "resized",
    "size_tree",
    "whole_number",
]

OPERATIONS = {"Add": "+", "Mul": "*", "FloorDiv": "//", "CleanDiv": "//", "Mod": "%", "PythonMod": "%",
              "Max": "max", "Min": "min", "Equality": "=", "Unequality": "≠", "StrictLessThan": "<", "LessThan": "≤",
              "StrictGreaterThan": ">", "GreaterThan": "≥", "And": "and", "Or": "or"}  # fmt: skip
ROUNDINGS = {"TruncToInt": "zero", "FloorToInt": "down", "CeilToInt": "up"}
MOST = 40
"""Conditions at most: a network of windows and paddings asks twice as many, and tracing them takes a minute."""
LONG = 4096
"""Sizes above it are tried much smaller first."""
FINEST = 1024
"""The largest divisor of a number with a binary point that sizes are multiplied by without rounding: 0.5, 1.25."""
NEAR = 64
"""Sizes below it are looked at for one that a single limit leaves out."""
TRIES = 2000
"""Combinations of sizes looked at for one that the limits allow."""


def size_tree(expression: Any, symbols: Mapping[Any, str]) -> Any:
    """The tree of a `Size` for an expression of torch's symbols. Raises `TraceError` where there is none."""
    if expression in symbols:
        return symbols[expression]
    if expression.is_Integer:
        return int(expression)
    if expression.is_Pow and expression.exp.is_Integer and expression.exp > 1:
        return ("*", *[size_tree(expression.base, symbols)] * int(expression.exp))
    kind = type(expression).__name__
    if kind in ROUNDINGS and (whole := whole_number(expression.args[0], ROUNDINGS[kind])) is not None:
        return size_tree(whole, symbols)
    operation = OPERATIONS.get(kind)
    if operation is None:
        raise TraceError(f"a tensor's size is {expression}, which parspike cannot follow")
    return (operation, *(size_tree(operand, symbols) for operand in expression.args))


def whole_number(expression: Any, toward: str = "zero") -> Any:
    """The whole number that a number computed from sizes with / and *, such as 4·B / 4.0, is rounded to, as torch's
    expression without rounding: (4·B) // 4. toward: "zero" as `int`, "down" as `math.floor`, "up" as `math.ceil`.
    None where rounding could make another number of it, and toward zero where it could be below 0."""
    if type(expression).__name__ == "ToFloat":
        return expression.args[0]
    found = _ratio(expression)
    if found is None or (toward == "zero" and not found.number.is_nonnegative):
        return None
    number, divisor = found.number, found.divisor
    return number if divisor == 1 else FloorDiv(number + divisor - 1 if toward == "up" else number, divisor)


@dataclass(frozen=True)
class _Ratio:
    """A floating number made of sizes as the quotient of two whole ones, the second above 0.

    exact: the floating number is the quotient itself. Else one division rounded it, which leaves the whole numbers
    around it as they are: 61 / 7 lies between 8 and 9. A second rounding may not: 61 / 7 * 7 is less than 61.
    """

    number: Any
    divisor: Any
    exact: bool

    def times(self, other: _Ratio) -> _Ratio | None:
        exact = self.exact and other.exact
        if not exact and not any(one.exact and one.scales for one in (self, other)):
            return None
        return _Ratio(self.number * other.number, self.divisor * other.divisor, exact)

    def over(self, other: _Ratio) -> _Ratio | None:
        if not other.exact or not other.number.is_positive or not (self.exact or other.scales):
            return None
        return _Ratio(self.number * other.divisor, self.divisor * other.number, self.exact and other.scales)

    @property
    def scales(self) -> bool:
        """Whether it is a power of 2, by which numbers are multiplied and divided without rounding."""
        return _power_of_two(self.number) and _power_of_two(self.divisor)


def _power_of_two(number: Any) -> bool:
    return bool(number.is_Integer and number > 0 and int(number).bit_count() == 1)


def _ratio(expression: Any) -> _Ratio | None:
    """An expression of floating numbers as a quotient; None where it is none."""
    kind, parts = type(expression).__name__, expression.args
    if expression.is_Float:
        number, divisor = Fraction(float(expression)).as_integer_ratio()
        return _Ratio(Integer(number), Integer(divisor), True) if divisor <= FINEST else None
    if expression.is_integer or kind == "ToFloat":
        return _Ratio(parts[0] if kind == "ToFloat" else expression, Integer(1), True)
    if kind not in ("FloatTrueDiv", "IntTrueDiv", "Mul"):
        return None
    made: _Ratio | None = None
    for part in parts:
        ratio = _ratio(part)
        if ratio is None or made is None:
            made = ratio
        else:
            made = made.times(ratio) if kind == "Mul" else made.over(ratio)
        if made is None:
            return None
    return made


class GuardWatch:
    """While a network is traced with open sizes: in which layer each condition on them was met."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): name for name, module in model.named_modules()}
        self.stack: list[str] = [""]
        self.layers: dict[int, list[str]] = {}

    def layer(self, environment: Any, number: int) -> str:
        """The layer of a condition, by its number."""
        found = self.layers.get(id(environment), [])
        return found[number] if number < len(found) else ""

    def _mark(self, args: Any) -> None:
        mode = detect_fake_mode(args)
        if mode is not None and mode.shape_env is not None:
            found = self.layers.setdefault(id(mode.shape_env), [])
            found.extend([self.stack[-1]] * (len(mode.shape_env.guards) - len(found)))
            if len(found) > MOST:
                raise TraceError(f"it asks more than {MOST} conditions of its sizes")

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._mark(args)
        self.stack.append(self.names.get(id(module), self.stack[-1]))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._mark((args, output))
        self.stack.pop()

    @contextlib.contextmanager
    def watching(self, *, oblivious: bool = True) -> Iterator[None]:
        """Export inside. oblivious: sizes of one are then nothing special, so that they add no conditions of their own,
        but torch does not know then which part of a value a slice is whose start is a difference of sizes."""
        hooks = register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave)
        try:
            with _config.patch(backed_size_oblivious=oblivious):  # pyright: ignore[reportAttributeAccessIssue]
                yield
        finally:
            for hook in hooks:
                hook.remove()


@dataclass
class Conditions:
    """What a network asks of the sizes of its inputs.

    fixed: (number of the input, dimension) → (layer, line) that fixes it. limits: as expressions of torch.
    """

    fixed: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)
    limits: list[Any] = field(default_factory=list)

    def as_sizes(self, symbols: Mapping[Any, str]) -> tuple[Size, ...]:
        """The limits for `Graph`."""
        trees = [tree for limit in self.limits for tree in _each(_condition(limit, symbols))]
        return tuple(dict.fromkeys(Size(tree) for tree in trees if not _same(tree)))


def conditions(placeholders: Sequence[Any], opened: Sequence[set[int]], watch: GuardWatch) -> Conditions:
    """Read the conditions on sizes off an exported program. placeholders: of the inputs; opened: dimensions that were
    left open."""
    shapes = [fx.meta["val"].shape for fx in placeholders]
    environment = shapes[0][0].node.shape_env
    batch = {symbol for shape in shapes if not isinstance(shape[0], int) for symbol in shape[0].node.expr.free_symbols}
    places: dict[Any, list[tuple[int, int]]] = {}
    for i, shape in enumerate(shapes):
        for d in opened[i]:
            if not isinstance(shape[d], int):
                for symbol in shape[d].node.expr.free_symbols:
                    places.setdefault(symbol, []).append((i, d))
    found = Conditions()
    reasons: dict[Any, tuple[str, str]] = {}
    equations: dict[Any, tuple[str, str]] = {}
    for number, guard in enumerate(environment.guards):
        where = watch.layer(environment, number), guard.sloc.maybe_user_loc or ""
        says = _numbered(guard.expr, batch)
        for symbol in guard.expr.free_symbols:
            if environment.replace(symbol).is_Integer:
                # A least size, as a convolution asks it, stands before the equation that fixes it.
                reasons.setdefault(symbol, where)
                equations.update({symbol: where} if symbol in says and symbol not in equations else {})
        expression = _plain(_one_batch(environment.replace(guard.expr), batch))
        if not expression.free_symbols:
            continue
        if not expression.free_symbols - batch:
            found.limits.append(expression)
        elif numbered := _numbered(expression, batch):
            for symbol in numbered:
                found.fixed.update(dict.fromkeys(places.get(symbol, ()), where))
        else:
            found.limits.append(expression)
    named = {_place(name): symbol for name, symbol in environment.source_to_var.items()}
    for i, shape in enumerate(shapes):
        for d in opened[i]:
            if isinstance(shape[d], int) or shape[d].node.expr.is_Integer:
                symbol = named.get((placeholders[i].name, d))
                found.fixed[i, d] = equations.get(symbol, reasons.get(symbol, ("", "")))
    ranges = {}
    for symbol in places:
        known = environment.var_to_range[symbol]
        ranges[symbol] = ValueRanges(max(1, known.lower), known.upper)
    found.limits = [limit for limit in found.limits if not _always(limit, ranges, batch)]
    for symbol, known in ranges.items():
        found.limits.extend([symbol >= known.lower] if known.lower > 1 else [])
        found.limits.extend([symbol <= known.upper] if known.upper.is_Integer else [])
    return found


def batch_limits(
    placeholders: Sequence[Any], symbols: Mapping[Any, str], numbers: Mapping[Any, Any]
) -> tuple[Size, ...]:
    """The conditions on the batch size in a program that was exported with the batch alone open, such as a branch on
    it, or with more open, for which `numbers` are put in."""
    environment = placeholders[0].meta["val"].shape[0].node.shape_env
    batch = {symbol for symbol, name in symbols.items() if name == BATCH}
    limits = []
    for guard in environment.guards:
        expression = _plain(_one_batch(environment.replace(guard.expr).xreplace(numbers), batch))
        if expression.free_symbols - batch:
            continue  # the strides of an example that is a view: inputs of other strides have the same values
        if expression.free_symbols and not _always(expression, {}, batch):
            try:
                tree = _condition(expression, symbols)
                limits.extend([] if _same(tree) else [Size(tree)])
            except TraceError:
                holds = [bool(expression.subs(dict.fromkeys(batch, n))) for n in range(1, 65)]
                if not all(holds):
                    raise TraceError(f"its code asks of the batch size that {expression}: not supported") from None
    return tuple(dict.fromkeys(limits))


def _place(source: str) -> tuple[str, int]:
    """Input and dimension in a source such as L['x'].size()[2], the input's name as torch.export writes it."""
    base, _, dim = source.removesuffix("]").partition(".size()[")
    return re.sub(r"\W+", "_", base.removeprefix("L")).strip("_"), int(dim) if dim.isdigit() else -1


def _numbered(condition: Any, batch: set[Any]) -> set[Any]:
    """The sizes of which a condition says that they equal a number. Divisibility does not say that, nor does the number
    of parts of a size that grow with it, (n + n // 2 - 1) // (n // 2) = 2, which `x.chunk` and `x.split` ask."""
    if type(condition).__name__ != "Equality" or any(type(s).__name__ in ("Mod", "PythonMod") for s in condition.args):
        return set()
    if any(type(side).__name__ in ("FloorDiv", "CleanDiv") and side.args[1].free_symbols - batch
           for side in condition.args):  # fmt: skip
        return set()
    one, two = condition.args
    # The batch on both sides, as where it is in a view's shape, goes away in the quotient.
    for side, other in ((one, two), (two, one), (one / two).as_numer_denom(), (two / one).as_numer_denom()):
        if other.is_Integer:
            return side.free_symbols
    return set()


def _one_batch(condition: Any, batch: set[Any]) -> Any:
    """The same condition with one symbol for the batch, of which torch has one for every input."""
    return condition.xreplace(dict.fromkeys(batch, min(batch, key=str))) if batch else condition


def _plain(condition: Any) -> Any:
    """The same condition with (k·q + r) // q as k + r // q, with k·q % q as 0, and without positive factors of both
    sides of an equation: so (3·B − 1) // B = 2, which `x.chunk` asks, is seen to hold for every B."""
    condition = condition.replace(lambda part: type(part).__name__ in ("FloorDiv", "CleanDiv"), _divided)
    condition = condition.replace(lambda part: type(part).__name__ in ("Mod", "PythonMod"), _left_over)
    if type(condition).__name__ not in ("Equality", "Unequality"):
        return condition
    if condition.args[1] == 0 and type(condition.args[0]).__name__ in ("Mod", "PythonMod"):
        rest = condition.args[0]
        return condition.func(rest.func(*_without_shared(rest.args)), 0)
    return condition.func(*_without_shared(condition.args))


def _without_shared(both: Sequence[Any]) -> Sequence[Any]:
    """Two whole numbers without the positive factors that they share."""
    sides = [_factors(side) for side in both]
    shared = [base for base in {**sides[0], **sides[1]} if base.is_Symbol and base.is_positive]
    least = {base: min(side.get(base, 0) for side in sides if side) for base in shared}
    numbers = [abs(int(side.as_coeff_Mul()[0])) for side in both if side.as_coeff_Mul()[0].is_Integer]
    by = Mul(math.gcd(*numbers) if len(numbers) == 2 else 1, *(base**n for base, n in least.items()))
    return both if by in (0, 1) else [side / by for side in both]


def _factors(product: Any) -> dict[Any, Any]:
    """Factor → power; of 0 none, as every number divides it."""
    return {} if product == 0 else dict(product.as_powers_dict())


def _divided(part: Any) -> Any:
    whole, rest = _quotient(part)
    return part if whole == 0 else whole + FloorDiv(rest, part.args[1])


def _left_over(part: Any) -> Any:
    whole, rest = _quotient(part)
    return Integer(0) if whole != 0 and rest == 0 else part


def _quotient(part: Any) -> tuple[Any, Any]:
    """k and r of (k·q + r) // q or % q where q has sizes in it and k only whole numbers; k = 0 where there is none."""
    number, by = part.args
    symbols = part.free_symbols
    if not by.free_symbols or not all(side.is_polynomial(*symbols) for side in part.args):
        return 0, number
    whole, rest = div(number, by, *symbols)
    return (whole, rest) if all(c.is_Integer for c in Poly(whole, *symbols).coeffs()) else (0, number)


def _always(limit: Any, ranges: Mapping[Any, Any], batch: set[Any]) -> bool:
    # torch.export itself adds the condition that the batch is not 1; a batch of one is compared with the network in
    # `batch.py`.
    if not limit.free_symbols:
        return bool(limit)
    least = 2 if limit.free_symbols <= batch else 1
    known = bound_sympy(limit, {**dict.fromkeys(batch, ValueRanges(least, 1 << 30)), **ranges})
    return known.is_singleton() and bool(known.lower)


def _condition(expression: Any, symbols: Mapping[Any, str]) -> Any:
    if type(expression).__name__ == "Equality":
        for one, two in itertools.permutations(expression.args):
            factor, rest = one.as_coeff_Mul()
            if type(rest).__name__ == "FloorDiv" and rest.args == (two, factor):  # k·(x // k) = x
                return ("=", ("%", size_tree(two, symbols), int(factor)), 0)
            if (by := _windows(one, two)) is not None:
                tests = [("=", ("%", size_tree(part, symbols), number), 0) for part, number in by]
                return tests[0] if len(tests) == 1 else ("and", *tests)
            if type(two).__name__ == "Min" and one in two.args:  # x = min(x, k)
                most = type(two)(*(part for part in two.args if part != one))
                return ("≤", size_tree(one, symbols), size_tree(most, symbols))
    if type(expression).__name__ in ("And", "Or"):
        return (OPERATIONS[type(expression).__name__], *(_condition(part, symbols) for part in expression.args))
    return size_tree(expression, symbols)


def _each(condition: Any) -> Sequence[Any]:
    """The conditions that one joins by "and"."""
    return condition[1:] if isinstance(condition, tuple) and condition[0] == "and" else [condition]


def _windows(one: Any, two: Any) -> list[tuple[Any, int]] | None:
    """Of 16·(x // 4)·(y // 4) and x·y, which are equal where all windows are whole: x and y with their divisors."""
    number, rest = one.as_coeff_Mul()
    parts = rest.args if rest.is_Mul else (rest,)
    if not all(type(part).__name__ == "FloorDiv" and part.args[1].is_Integer for part in parts):
        return None
    by = [(part.args[0], int(part.args[1])) for part in parts]
    whole = all(part.is_positive or part.is_nonnegative for part, _ in by)
    product = Mul(*(part for part, _ in by))
    return by if whole and number == math.prod(n for _, n in by) and product == two else None


def _same(condition: Any) -> bool:
    """Whether a condition compares a size with itself; torch has two symbols for what two inputs share."""
    return isinstance(condition, tuple) and condition[0] in ("=", "≤", "≥") and condition[1] == condition[2]


def other_sizes(graph: Graph) -> Iterator[dict[str, int]]:
    """Sizes for the smallest batch that the limits allow, every free one unlike the example's; smaller ones first."""
    choices, batch = [], graph.batch()
    for place, n in enumerate(graph.example.values()):
        # A long signal would take most of planning; a length this small is still far from the layers' windows.
        short = (n // 16 + 1,) if n > LONG else ()
        near = (*short, n // 2 + 1, n // 2, n - n // 4, n - 1, n - 2, n - 4, n - 8, n - 16, n - 32, n + 1, n + 2, n + 4,
                n + 8, n + 16, n + 32, n + 64, 2 * n)  # fmt: skip
        fit = [size for size in dict.fromkeys(near) if size > 1 and size != n]
        choices.append(fit[place % len(fit) :] + fit[: place % len(fit)])
    for combination in itertools.islice(itertools.product(*choices), TRIES):
        sizes = {BATCH: batch, **dict(zip(graph.example, combination, strict=True))}
        if graph.allows(sizes):
            yield sizes


def left_out(graph: Graph, limit: Size) -> list[dict[str, int]]:
    """Sizes that the graph's limits allow and this one leaves out, three at most: those nearest to the example's, and
    the smallest."""
    usual = {**graph.example, BATCH: graph.batch(2)}
    symbols = sorted(limit.symbols)
    known = {*usual.values(), *(abs(leaf) for leaf in leaves(limit.tree) if isinstance(leaf, int))}
    few = {*range(1, NEAR), *(n + d for n in known for d in range(-3, 4) if n + d > 0)}
    found: list[dict[str, int]] = []
    for place in itertools.product(sorted(few), repeat=len(symbols)) if len(symbols) < 3 else ():
        sizes = {**usual, **dict(zip(symbols, place, strict=True))}
        if not limit.holds(sizes) and graph.allows(sizes):
            found.append(sizes)
    nearest = sorted(found, key=lambda sizes: sum(abs(sizes[symbol] - usual[symbol]) for symbol in symbols))
    return [sizes for n, sizes in enumerate((*nearest[:2], *found[:1])) if sizes not in nearest[:n]]


def resized(x: Tensor, shape: Sequence[Any], sizes: Mapping[str, int]) -> Tensor:
    """An input cut or repeated to other sizes, so that its values stay those of a real input."""
    for d, dim in enumerate(shape):
        if isinstance(dim, Size):
            x = x.index_select(d, torch.arange(dim(sizes), device=x.device) % x.shape[d])
    return x
