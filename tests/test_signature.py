"""Arguments by name: what `graph.signature` reads from traced operators computes what the operators do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parspike.graph import Graph, Node, Param, Ref, Role, trace
from parspike.graph.ops import TABLE, call
from parspike.graph.order import compared
from parspike.graph.signature import SPATIAL, Conv, Linear, Pool, arguments, with_weights

CONVS = (None, F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (None, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
AVERAGES = (None, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
MAXIMA = (None, F.max_pool1d, F.max_pool2d, F.max_pool3d)


class Calls(nn.Module):
    """A function of the input, and a weight and a bias of its own."""

    def __init__(self, function: Any, weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        super().__init__()
        self.function = function
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


def read(model: nn.Module, x: Tensor) -> tuple[Any, Graph, Tensor]:
    """The named arguments of the one operator that has some, its graph, and what it should give."""
    graph = trace(model.eval(), (x,))
    (found,) = [found for node in graph.nodes if (found := arguments(node)) is not None]
    return found, graph, model(x).detach()


def like(shape: int | tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def x_of(dims: int, channels: int = 4) -> Tensor:
    return like((2, channels, *(9, 8, 7)[:dims]))


# ------------------------------------------------------------------------------------------------------ convolutions


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"padding": 1},
        {"dilation": 2},
        {"groups": 2},
        {"padding": "same"},
        {"padding": "valid", "dilation": 2},
        {"padding": "same", "dilation": 2, "groups": 2},
        {"stride": (2, 1, 3), "padding": (0, 2, 1), "dilation": (1, 2, 1), "groups": 4},
    ],
)
def test_a_convolution_by_its_names_is_the_convolution(dims: int, bias: bool, options: dict[str, Any]) -> None:
    options = {name: value[:dims] if isinstance(value, tuple) else value for name, value in options.items()}
    # An even side too: "same" then puts one zero more behind than before.
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](4, 8, (2, 3, 2)[:dims], bias=bias, **options)
    x = x_of(dims)
    found, graph, right = read(conv, x)
    assert isinstance(found, Conv)
    assert not found.transposed
    assert found.input == Ref(graph.inputs[0].name)
    assert (found.weight, found.bias) == (Param("weight"), Param("bias") if bias else None)
    assert all(len(sizes) == dims for sizes in (found.stride, found.dilation, found.output_padding))
    zeros = [size for pair in reversed(found.padded(conv.weight.shape[2:])) for size in pair]
    made = CONVS[dims](
        F.pad(x, zeros), conv.weight, conv.bias, found.stride, 0, dilation=found.dilation, groups=found.groups
    )
    torch.testing.assert_close(made, right)
    assert (found.padding == "same") is (options.get("padding") == "same")


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"stride": (3, 2, 2), "padding": 1, "output_padding": 1, "groups": 2, "dilation": (1, 2, 1)}]
)
def test_a_transposed_convolution_by_its_names_is_the_convolution(dims: int, options: dict[str, Any]) -> None:
    options = {name: value[:dims] if isinstance(value, tuple) else value for name, value in options.items()}
    conv = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1](4, 8, 3, **options)
    x = x_of(dims)
    found, _, right = read(conv, x)
    assert isinstance(found, Conv)
    assert found.transposed
    assert not isinstance(found.padding, str)
    made = TRANSPOSED[dims](
        x, conv.weight, conv.bias, found.stride, found.padding, found.output_padding, found.groups, found.dilation
    )
    torch.testing.assert_close(made, right)


def conv2d(*args: Any, **kwargs: Any) -> Conv:
    found = arguments(Node("n", "aten.conv2d.default", (Ref("x"), Param("w"), *args), kwargs, Role.SYNAPSE, "n"))
    assert isinstance(found, Conv)
    return found


def test_what_is_left_out_has_the_operators_default_however_the_rest_is_given() -> None:
    plain = Conv(Ref("x"), Param("w"), None, (1, 1), (0, 0), (1, 1), 1, False, (0, 0))
    assert conv2d() == conv2d(None, [1], [0, 0], [1, 1], 1) == conv2d(bias=None, dilation=1) == plain
    assert conv2d(Param("b"), [2], groups=4).groups == 4
    assert conv2d(Param("b"), [2, 1], padding=[1]) == Conv(
        Ref("x"), Param("w"), Param("b"), (2, 1), (1, 1), (1, 1), 1, False, (0, 0)
    )


def test_other_weights_take_the_places_of_the_old() -> None:
    for args, kwargs in (
        ((Ref("x"), Param("w")), {}),
        ((Ref("x"), Param("w"), None, [2, 2]), {}),
        ((Ref("x"), Param("w"), Param("b"), [2, 2]), {}),
        ((Ref("x"), Param("w")), {"bias": Param("b")}),
        ((Ref("x"),), {"weight": Param("w"), "stride": [2, 2]}),
    ):
        node = Node("n", "aten.conv2d.default", args, kwargs, Role.SYNAPSE, "n")
        before, after = arguments(node), arguments(with_weights(node, Param("v"), Param("c")))
        assert isinstance(before, Conv)
        assert isinstance(after, Conv)
        assert (after.input, after.weight, after.bias) == (Ref("x"), Param("v"), Param("c"))
        assert (after.stride, after.padding) == (before.stride, before.padding)


# ------------------------------------------------------------------------------------------------------ linear layers


@pytest.mark.parametrize(
    ("function", "weight", "bias"),
    [
        (F.linear, like((5, 3)), like(5)),
        (lambda x, w, b: F.linear(x, w), like((5, 3)), None),
        (lambda x, w, b: torch.mm(x, w), like((3, 5)), None),
        (lambda x, w, b: torch.addmm(b, x, w), like((3, 5)), like(5)),
    ],
    ids=["linear", "linear without bias", "mm", "addmm"],
)
def test_a_linear_layer_by_its_names_is_the_layer(function: Any, weight: Tensor, bias: Tensor | None) -> None:
    x = like((4, 3), seed=1)
    found, graph, right = read(Calls(function, weight, bias), x)
    assert isinstance(found, Linear)
    assert found.input == Ref(graph.inputs[0].name)
    matrix = graph.tensors[found.weight.path]
    matrix = matrix if found.transposed else matrix.T
    made = x @ matrix if found.bias is None else x @ matrix + graph.tensors[found.bias.path]
    torch.testing.assert_close(made, right)
    assert (found.bias is None) is (bias is None)


@pytest.mark.parametrize(
    ("target", "args", "kwargs"),
    [
        ("aten.mm.default", (Param("w"), Ref("x")), {}),
        ("aten.mm.default", (Ref("x"), Ref("y")), {}),
        ("aten.addmm.default", (Param("b"), Ref("x"), Param("w")), {"alpha": 2}),
        ("aten.addmm.default", (Param("b"), Ref("x"), Param("w")), {"beta": 0.5}),
        ("aten.bmm.default", (Ref("x"), Param("w")), {}),
        ("aten.relu.default", (Ref("x"),), {}),
        ("parspike.scale_shift", (Ref("x"), Param("a"), Param("b")), {}),
        ("getitem", (Ref("x"), 0), {}),
    ],
)
def test_what_is_none_of_them_has_no_names(target: str, args: Any, kwargs: Any) -> None:
    assert arguments(Node("n", target, args, kwargs, Role.SYNAPSE, "n")) is None


# -------------------------------------------------------------------------------------------------------------- pools


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": (2, 3, 2), "stride": (1, 2, 3)},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    ],
)
@pytest.mark.parametrize("average", [True, False])
def test_a_pool_by_its_names_is_the_pool(dims: int, options: dict[str, Any], average: bool) -> None:
    options = {name: value[:dims] if isinstance(value, tuple) else value for name, value in options.items()}
    options |= {"count_include_pad": False} if average else {"dilation": 1 if dims == 3 else 2}
    function = (AVERAGES if average else MAXIMA)[dims]
    x = x_of(dims)
    found, _, right = read(Calls(lambda x, w, b: function(x, **options)), x)
    assert isinstance(found, Pool)
    assert (found.rank, found.average, found.divisor) == (dims, average, None)
    assert len(found.kernel) == len(found.stride) == len(found.padding) == len(found.dilation) == dims
    more = {"count_include_pad": found.count_include_pad} if average else {"dilation": found.dilation}
    made = function(x, found.kernel, found.stride, found.padding, ceil_mode=found.ceil_mode, **more)
    torch.testing.assert_close(made, right)


def test_a_divisor_and_the_sizes_of_adaptive_pools() -> None:
    x = x_of(2)
    found, _, _ = read(Calls(lambda x, w, b: F.avg_pool2d(x, 2, divisor_override=3)), x)
    assert (found.divisor, found.kernel, found.stride) == (3, (2, 2), (2, 2))
    for function, average in ((F.adaptive_avg_pool2d, True), (F.adaptive_max_pool2d, False)):
        found, _, _ = read(Calls(lambda x, w, b, function=function: function(x, (3, 2))), x)
        assert found == Pool(found.input, 2, average, output_size=(3, 2))


def test_the_window_says_which_dimensions_a_maximum_compares() -> None:
    def dims(target: str, *args: Any) -> set[int]:
        before = Node("x", "aten.relu.default", (Ref("i"),), {}, Role.NEURON, "x", shape=(2, 3, 8, 8))
        return compared(before, Node("n", target, (Ref("x"), *args), {}, Role.ORDER, "n", shape=(2, 3, 4, 4)))

    assert dims("aten.max_pool2d.default", [2, 2]) == dims("aten.max_pool2d.default", [2]) == {2, 3}
    assert dims("aten.max_pool2d.default", 2) == dims("aten.adaptive_max_pool2d.default", [4, 4]) == {2, 3}
    assert dims("aten.max_pool2d.default", [1, 2]) == {3}
    assert dims("aten.max_pool1d.default", [2]) == {3}
    assert dims("aten.amax.default", [1]) == {1}


# ---------------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize(
    "target", [name for name in TABLE if ("conv" in name or "pool" in name) and "unpool" not in name]
)
def test_every_convolution_and_pool_of_the_table_has_names(target: str) -> None:
    match = SPATIAL.match(target)
    assert match is not None, "graph/signature.py does not know it"
    dims = int(match[2])
    weight, x = like((4, 4, *[3] * dims)), x_of(dims)
    args = (x, weight) if "conv" in target else (x, [3] * dims)
    found = arguments(Node("n", target, args, {}, Role.SYNAPSE, "n"))
    assert found is not None
    assert found.input is x
    call(target, args, {})  # the table runs it with these positions
