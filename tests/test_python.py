"""Python that torch.export does not follow: `len` and `int` of sizes, and questions that torch asks of values."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal

import parspike
from parspike.errors import TraceError
from parspike.graph import trace
from parspike.graph.sizes import whole_number


def windows_joined(x: Tensor, size: int, height: int) -> Tensor:
    """A helper beside the network, as in Swin: the batch from the number of windows."""
    batch = int(x.shape[0] / (height / size))
    return x.view(batch, height // size, size, -1).reshape(batch, height, -1)


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.function = nn.Linear(8, 16), nn.LazyLinear(3), function
        self.two(function(self.one(torch.rand(4, 8))))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.function(F.relu(self.one(x))))


class Distances(nn.Module):
    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.points = nn.Parameter(points)

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x, self.points)


def tokens_before(h: Tensor, width: int) -> Tensor:
    return torch.cat([torch.ones(1, width).expand(len(h), -1), h], 1)


TABLE = {"tokens": [functools.partial(tokens_before, width=2)]}

SIZES = {
    "len in a table of functions": lambda h: TABLE["tokens"][0](h),
    "len": lambda h: torch.cat([torch.ones(1, 2).expand(len(h), -1), h], 1),
    "in a comprehension": lambda h: h + torch.zeros([int(n) for n in h.shape]),
    "of windows, in a helper": lambda h: windows_joined(h.view(-1, 2, 4), 2, 4),
    "times a number": lambda h: h.repeat(2, 1)[: int(h.shape[0] * 1.0)],
    "int also as a type": lambda h: h * torch.ones(len(h), 1, dtype=int) if isinstance(3, int) else h[:0],
    "floor and ceil": lambda h: h.repeat(2, 1)[: math.ceil(h.shape[0] / 3) + math.floor(h.shape[0] / 2)],
    "len of what is no tensor": lambda h: h[:, : len(str(h.dim())) * 4] * len([1, 2]),
    "of text": lambda h: h * int("3") * int("11", base=2),
    "a number of Python's is needed": lambda h: h * torch.ones(h.shape[0], len(f"{int(h.shape[1]):d}")).sum(1)[:, None],
}


@pytest.mark.parametrize("name", SIZES)
def test_len_and_int_of_the_batch_follow_the_batch(name):
    """Catches a batch size frozen at the example's, which refused Swin and tables of tokens."""
    model = Net(SIZES[name]).eval()
    before = SIZES[name].__code__, windows_joined.__code__, set(globals())
    graph = trace(model, (torch.rand(4, 8),))
    assert (SIZES[name].__code__, windows_joined.__code__, set(globals())) == before
    for batch in (1, 2, 7):
        x = torch.rand(batch, 8)
        torch.testing.assert_close(graph.run(x), model(x))


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.out = nn.Embedding(9, 8), nn.Linear(8, 9)
        self.transformer = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.out(self.transformer(self.words(source), self.words(target), tgt_mask=mask))


class Held(nn.Module):
    """Calls `len` in a function that it holds in a list, and in a property."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.before = nn.Linear(8, 4), [lambda h: tokens_before(h, 2)]

    @property
    def rows(self) -> int:
        return len(self.x)

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return self.before[0](F.relu(self.one(x))) + torch.ones(1, 6).expand(self.rows, -1)


def test_functions_in_containers_and_properties_follow_the_batch():
    """Catches a batch size frozen at the example's, which is refused."""
    model = Held().eval()
    graph = trace(model, (torch.rand(4, 8),))
    for batch in (1, 7):
        x = torch.rand(batch, 8)
        torch.testing.assert_close(graph.run(x), model(x))


class Read(nn.Module):
    """Reads values through `.data`, of its input, of hidden values, of weights and of its output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.one(x.data))
        h.detach().data.clamp_(max=1.5)
        y = F.linear(h.data, self.two.weight.data, self.two.bias)
        return y.data, h.data.mean(1)


def test_data_of_a_tensor_is_the_tensor():
    """Catches `out.data` refused: tracing does not see it."""
    model = Read().eval()
    graph = trace(model, (torch.rand(4, 8),))
    assert any(node.layer == "relu" for node in graph.nodes)
    x = 9 * torch.rand(5, 8)
    assert float(F.relu(model.one(x)).max()) > 1.5
    for found, wanted in zip(graph.run(x), model(x), strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_transformer_does_not_ask_whether_its_mask_is_causal():
    """Would catch the refusal of nn.Transformer with a mask, a branch on values, and a question left out for good."""
    model, before = Translator().eval(), nn.modules.transformer._detect_is_causal_mask
    graph = trace(model, (torch.arange(12).view(2, 6) % 9, torch.arange(8).view(2, 4) % 9))
    assert nn.modules.transformer._detect_is_causal_mask is before
    source, target = torch.arange(18).view(3, 6) % 9, torch.arange(12).view(3, 4) % 9
    torch.testing.assert_close(graph.run(source, target), model(source, target))


def test_a_module_of_the_users_may_have_its_own_len():
    """It would catch a user's function of that name that is replaced by one that counts rows."""
    room = {"__name__": "users", "torch": torch, "nn": nn}
    exec(
        "def len(h): return 3.0\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.linear = nn.Linear(2, 2)\n"
        "    def forward(self, x):\n"
        "        return self.linear(x).relu() * len(x)\n",
        room,
    )
    model, x = room["Net"]().eval(), torch.rand(4, 2)
    snn = parspike.convert(model, [x], T=64, recipe="daqcfs")
    assert float((snn(x) - model(x)).abs().max()) < 0.2
    assert {"len", "Net"} <= set(room)
    assert not any(name.startswith("_parspike") for name in room)


def test_sizes_by_a_scale_stay_free():
    """Catches a size that interpolation computes in floating numbers, which fixed all others."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Upsample(scale_factor=2, mode="bicubic")).eval()
    graph = trace(model, (torch.rand(2, 1, 8, 8),))
    x = torch.rand(3, 1, 11, 6)
    assert not graph.fixed[1:]
    torch.testing.assert_close(graph.run(x), model(x))


def test_int_rounds_as_python_does():
    """Catches a wrong quotient, and one that rounding or a sign could change."""
    from sympy import Float, Integer, Symbol
    from torch.utils._sympy.functions import FloatTrueDiv, ToFloat

    n = Symbol("n", integer=True, positive=True)
    for divisor, factor in ((4.0, 1), (2.5, 3), (8.0, 0.75)):
        exact = FloatTrueDiv(ToFloat(n) * Float(factor), Float(divisor))
        whole, up = whole_number(exact), whole_number(exact, "up")
        for k in range(1, 40):
            assert int(whole.subs(n, Integer(k))) == int(k * factor / divisor)
            assert int(up.subs(n, Integer(k))) == math.ceil(k * factor / divisor)
    assert whole_number(ToFloat(n) * Float(0.1)) is None
    assert whole_number(ToFloat(n) * Float(-1.0)) is None
    below = FloatTrueDiv(ToFloat(n - 20), Float(8.0))
    assert whole_number(below) is None
    for k in range(1, 40):
        assert int(whole_number(below, "down").subs(n, Integer(k))) == math.floor((k - 20) / 8)
        assert int(whole_number(below, "up").subs(n, Integer(k))) == math.ceil((k - 20) / 8)


def test_what_is_rounded_twice_is_not_followed():
    """Catches int(n / 7 * 7) taken for n: of 61 Python makes 60."""
    from sympy import Float, Symbol
    from torch.utils._sympy.functions import FloatTrueDiv, IntTrueDiv, ToFloat

    n = Symbol("n", integer=True, positive=True)
    assert int(61 / 7 * 7) == 60
    assert whole_number(IntTrueDiv(n, 7) * Float(7.0)) is None
    assert whole_number(FloatTrueDiv(FloatTrueDiv(ToFloat(n), Float(7.0)), Float(3.0))) is None
    assert whole_number(FloatTrueDiv(Float(1.0), IntTrueDiv(n, 7))) is None
    assert whole_number(FloatTrueDiv(ToFloat(n), Float(7.0)) * Float(4.0)) == whole_number(IntTrueDiv(4 * n, 7))
    model = Net(lambda h: h[:, : int(h.shape[0] / 7 * 7)].mean(1, keepdim=True) * torch.ones(h.shape)).eval()
    with pytest.raises(TraceError):
        trace(model, (torch.rand(4, 8),))


def test_distances_take_any_number_of_rows():
    """Catches the condition of at most 25 rows, by which torch chooses how it computes distances."""
    torch.manual_seed(0)
    points, one = torch.rand(5, 16), nn.Linear(8, 16)
    model = nn.Sequential(one, nn.ReLU(), Distances(points)).eval()
    graph = trace(model, (torch.rand(4, 8),))
    assert not graph.limits
    for batch in (1, 40):
        x = torch.rand(batch, 8)
        assert torch.equal(graph.run(x), model(x))


def test_distributions_that_check_their_arguments_are_followed(monkeypatch):
    """Catches the branch on values of `torch.distributions`; its checks are as before afterwards."""
    monkeypatch.setattr(Distribution, "_validate_args", True)  # torch.compile turns it off when it is first imported
    fixed = Normal(torch.zeros(()), torch.ones(()))
    model = Net(lambda h: fixed.log_prob(h) + Bernoulli(logits=h).probs).eval()
    x = torch.rand(4, 8)
    torch.testing.assert_close(trace(model, (x,)).run(x), model(x))
    with pytest.raises(ValueError, match="within the support"):
        Bernoulli(torch.ones(1) / 2).log_prob(torch.full((1,), 3.0))


def test_a_network_that_calls_len_converts_and_all_engines_agree():
    model = Net(SIZES["len"]).eval()
    snn = parspike.convert(model, torch.rand(32, 8), T=8, recipe="closed-form")
    x = torch.rand(5, 8)
    runs = [snn.run(x, engine=engine).logits for engine in ("count", "parallel", "serial")]
    torch.testing.assert_close(runs[0], runs[1])
    torch.testing.assert_close(runs[0], runs[2])
    assert (runs[0] - model(x)).abs().max() < 0.5
