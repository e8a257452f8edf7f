"""Each error of `parspike.errors` from a real call: its type, the place that it names, the remedy."""

from __future__ import annotations

import builtins
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import parspike
import parspike.lower
import parspike.train
from parspike import errors

X = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
NAN = torch.full((2, 4), float("nan"))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


class Code(nn.Module):
    """A network whose forward is the given function."""

    def __init__(self, forward: Callable[[Code, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.code = nn.Linear(4, 4), nn.Linear(4, 4), forward
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.code(self, x)


def changed(model: nn.Module, name: str, value: float) -> nn.Module:
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    return model


def says(call: Callable[[], Any], kind: type[Exception], *parts: str) -> str:
    """The message of the error that a call raises: of exactly this kind, with all these parts."""
    with pytest.raises(errors.ParspikeError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind, message
    for part in parts:
        assert part in message, message
    return message


def test_the_tree() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(kind, (errors.ParspikeError, errors.ParspikeWarning)) for kind in kinds)
    assert issubclass(errors.ParspikeWarning, UserWarning)
    for kind, also in {
        errors.InputError: ValueError,
        errors.OptionError: ValueError,
        errors.CalibrationError: ValueError,
        errors.FileError: OSError,
        errors.MissingExtraError: ImportError,
    }.items():
        assert issubclass(kind, also)
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in kinds)


# ------------------------------------------------------------------------------------------ inputs of the SNN


@pytest.mark.parametrize("engine", ["count", "parallel", "serial", "serial-if"])
@pytest.mark.parametrize(
    ("x", "parts"),
    [
        (torch.rand(2, 5), ["'input'", "(2, 5)", "(B, 4)"]),
        (torch.rand(2, 4, 1), ["'input'", "(2, 4, 1)", "(B, 4)"]),
        (torch.rand(0, 4), ["'input'", "(0, 4)", "B ≥ 1"]),
        (torch.rand(2, 4).double(), ["'input'", "torch.float64", "torch.float32"]),
        (torch.ones(2, 4, dtype=torch.int64), ["'input'", "torch.int64", "torch.float32"]),
        (NAN, ["'input'", "NaN or Inf", "in sample 0 first", "leave such samples out"]),
        (X / 0, ["'input'", "NaN or Inf"]),
        (X.numpy(), ["'input'", "tensor", "ndarray"]),
        (None, ["'input'", "tensor", "NoneType"]),
    ],
    ids=["shape", "dims", "empty", "double", "integers", "NaN", "Inf", "numpy", "None"],
)
def test_input(engine: str, x: Any, parts: list[str]) -> None:
    snn = parspike.convert(small(), X, T=2)
    says(lambda: snn.run(x, engine=engine), errors.InputError, *parts)


def test_large_inputs_are_taken_whose_sum_is_infinite() -> None:
    """Would catch a sum that stands for its values: it is infinite here, and NaN of both signs."""
    snn = parspike.convert(small(), X, T=2)
    for signs in (torch.ones(2, 4), torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1]])):
        assert snn(signs * 3e38).shape == snn(X[:2]).shape


def test_number_of_inputs() -> None:
    snn = parspike.convert(small(), X, T=2)
    says(lambda: snn(), errors.InputError, "takes the inputs (input), got 0 without a name")
    says(lambda: snn(X, X), errors.InputError, "takes the inputs (input), got 2 without a name")
    says(lambda: snn(x=X), errors.InputError, "takes the inputs (input), got 0 without a name, x=")


# -------------------------------------------------------------------------------------------------- the model


def test_model_in_train_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
    before = copy.deepcopy(model.state_dict())
    call = lambda: parspike.convert(model, X)  # noqa: E731
    says(call, errors.InputError, "layer '1' (BatchNorm1d)", "train mode", "model.eval()")
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    dropout = nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.ReLU())
    says(lambda: parspike.plan(dropout, X), errors.InputError, "layer '1' (Dropout)", "model.eval()")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float) -> None:
    model = changed(small(), "2.weight", value)
    says(lambda: parspike.convert(model, X), errors.InputError, "'2.weight'", "NaN or Inf")


class Buffers(nn.Module):
    """Linear → ReLU → linear, with a buffer that `use` reads together with the hidden values."""

    def __init__(self, buffer: Tensor, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.use = nn.Linear(4, 6), nn.Linear(6, 3), use
        self.register_buffer("table", buffer)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.use(self.first(x).relu(), self.table))


def test_buffers_that_are_no_numbers() -> None:
    infinite = torch.full((6,), torch.inf)
    for buffer, use in ((infinite, torch.mul), (infinite * 0, torch.add)):
        says(
            lambda b=buffer, u=use: parspike.convert(Buffers(b, u).eval(), X),
            errors.InputError,
            "'table'",
            "NaN or Inf",
        )  # type: ignore[misc]
    norm = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU()).eval()
    norm.get_buffer("1.running_var")[0] = torch.inf
    says(lambda: parspike.convert(norm, X), errors.InputError, "NaN or Inf")


def test_what_is_no_model() -> None:
    says(lambda: parspike.convert(lambda x: x, X), errors.InputError, "torch.nn.Module", "function")  # type: ignore[arg-type]
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU()).eval()
    says(lambda: parspike.convert(model, X), errors.InputError, "'0.weight'", "run the model once")


def test_threshold_of_the_network() -> None:
    model = nn.Sequential(nn.Linear(4, 6), parspike.QCFS(4, 1.0), nn.Linear(6, 2)).eval()
    changed(model, "1.v_threshold", -1.0)
    call = lambda: parspike.convert(model, T=4, example=X)  # noqa: E731
    says(call, errors.CalibrationError, "layer '1'", "not above 0")


# -------------------------------------------------------------------------------------------- calibration data


def batches(*items: Any, **options: Any) -> Callable[[], Any]:
    return lambda: parspike.convert(small(), list(items), example=X, T=2, **options)


def test_no_calibration() -> None:
    says(lambda: parspike.convert(small()), errors.CalibrationError, "calibration=")
    call = lambda: parspike.convert(small(), example=X)  # noqa: E731
    says(call, errors.CalibrationError, "layer '1'", "calibration=")


def test_no_calibration_of_a_network_trained_for_other_levels() -> None:
    trained = nn.Sequential(nn.Linear(4, 3), parspike.QCFS(4, 1.0), nn.Linear(3, 3)).eval()
    call = lambda: parspike.convert(trained, example=X, T=8)  # noqa: E731
    says(call, errors.CalibrationError, "layer '1' was trained with 4 levels and would have 8", "T=4", "Steps(4)")
    gated = nn.Sequential(nn.Linear(4, 3), parspike.QCFS(4, 1.0), nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 3)).eval()
    call = lambda: parspike.convert(gated, example=X, T=4)  # noqa: E731
    says(call, errors.CalibrationError, "layer '3'", "calibration=", "layers={'3': parspike.Keep()} (--keep 3)")


def test_empty_calibration() -> None:
    says(batches(), errors.CalibrationError, "empty", "at least one batch")
    says(lambda: parspike.convert(small(), []), errors.CalibrationError, "empty", "at least one batch")
    call = lambda: parspike.convert(small(), iter([]), example=X)  # noqa: E731
    says(call, errors.CalibrationError, "empty", "at least one batch")
    says(batches(X[:0]), errors.InputError, "batch 0", "(0, 4)", "B ≥ 1")


def test_calibration_generator() -> None:
    assert parspike.convert(small(), (x for x in [X]), T=2).T == 2
    says(lambda: parspike.convert(small(), (x for x in [])), errors.CalibrationError, "empty")


def test_calibration_data_of_another_kind() -> None:
    says(batches(X, torch.rand(2, 5)), errors.InputError, "batch 1", "'input'", "(2, 5)", "(B, 4)")
    says(batches(X, X.double()), errors.InputError, "batch 1", "'input'", "torch.float64", "torch.float32")
    says(batches(X, X, NAN), errors.InputError, "batch 2", "'input'", "NaN or Inf")
    says(batches({"foo": X}), errors.CalibrationError, "batch 0", "'foo'", "inputs=")
    says(lambda: parspike.convert(small(), 3, example=X), errors.CalibrationError, "iterable", "int")


# ------------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize("T", [0, -1, 2.0, True, "8", None, float("nan")])
def test_time_steps(T: Any) -> None:
    says(lambda: parspike.convert(small(), X, T=T), errors.OptionError, "T ", "from 1 to", repr(T))


def test_patterns() -> None:
    def keep(pattern: str, option: Any) -> Callable[[], Any]:
        return lambda: parspike.plan(small(), X, layers={pattern: option})

    says(keep("stem.*", parspike.Keep()), errors.OptionError, "'stem.*'", "matches no activation", "1")
    says(keep("2", parspike.Keep()), errors.OptionError, "'2'", "matches no activation")
    says(keep("1", "keep"), errors.OptionError, "layers['1']", "parspike.Keep()")


def test_recipes() -> None:
    def recipe(value: Any) -> Callable[[], Any]:
        return lambda: parspike.convert(small(), X, recipe=value)

    says(recipe("magic"), errors.OptionError, "'magic'", "daqcfs")
    says(recipe("{"), errors.OptionError, "not valid JSON")
    says(recipe('{"name":"daqcfs","more":1}'), errors.OptionError, "'daqcfs'", "momentum", "more")
    says(recipe(3), errors.OptionError, "a recipe is an object, its name or its JSON, got 3")
    says(lambda: parspike.DAQCFS(momentum=1.0), errors.OptionError, "momentum", "1.0")
    says(lambda: parspike.DAQCFS(passes=0), errors.OptionError, "passes", "0")
    says(lambda: parspike.DAQCFS(means="all"), errors.OptionError, "means", "'all'")  # type: ignore[arg-type]


def test_engines() -> None:
    snn = parspike.convert(small(), X, T=2)
    says(lambda: snn.run(X, engine="magic"), errors.OptionError, "'magic'", "count, parallel, serial, serial-if")
    says(lambda: snn.run(X, engine="parallel", chunk=0), errors.OptionError, "chunk", "0")


# ---------------------------------------------------------------------------------------------- refused networks


@torch.library.custom_op("parspike_tests::unheard", mutates_args=())
def unheard(x: Tensor) -> Tensor:
    """An operator that no table will ever have."""
    return x.clone()


@unheard.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Layer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return unheard(x)


class Refused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.odd = nn.Linear(4, 4), nn.Linear(4, 4), Layer()

    def forward(self, x: Tensor) -> Tensor:
        hidden = unheard(self.first(x))
        gated = unheard(self.gate(hidden).relu())
        return self.odd(gated)


def line_of(text: str) -> str:
    lines = Path(__file__).read_text().splitlines()
    return f"{Path(__file__).name}:{1 + next(i for i, line in enumerate(lines) if line.strip() == text)}"


def test_every_refusal_is_listed_at_once() -> None:
    made = parspike.plan(Refused().eval(), X)
    assert not made.ok
    message = says(
        lambda: parspike.convert(Refused().eval(), X),
        errors.UnsupportedError,
        "3 operator(s)",
        line_of("hidden = unheard(self.first(x))"),
        line_of("gated = unheard(self.gate(hidden).relu())"),
        line_of("return unheard(x)"),
        "layer 'odd'",
    )
    assert message.count("remedy: ") == len(made.refusals) == 3
    for row in made.refusals:
        assert f"layer '{row.layer}': {row.operator} at {row.source}" in message
        assert len(row.remedy) > 20
        assert row.remedy in message


def test_randomness_is_refused() -> None:
    model = Code(lambda self, x: F.dropout(self.one(x), training=True))
    says(lambda: parspike.convert(model, X), errors.UnsupportedError, "dropout", "remedy")


# ------------------------------------------------------------------------------------------------------- tracing


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x.relu()
        return x


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu().view(2, 4)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return cast(Any, x).no_such_method()


def test_branch_on_data() -> None:
    says(
        lambda: parspike.plan(Branch().eval(), X[:2]),
        errors.TraceError,
        "Branch",
        "branches on the values of a tensor",
        line_of("if x.sum() > 0:"),
        "tensor operations",
    )


def test_error_in_the_users_code() -> None:
    place = line_of("return cast(Any, x).no_such_method()")
    says(lambda: parspike.plan(Broken().eval(), X[:2]), errors.TraceError, "Broken", place, "no_such_method")


def test_samples_that_are_mixed() -> None:
    rolled = Code(lambda self, x: self.one(x).relu() + self.two(x).roll(1, 0))
    says(lambda: parspike.plan(rolled, X), errors.TraceError, "mixes the samples", "first dimension")


MIXED = {
    "less the first": lambda h: h - h[:1],
    "less the last": lambda h: h - h[-1:],
    "a thousandth of the mean": lambda h: h - 1e-3 * h.mean(0),
    "the place of the largest": lambda h: h / (h.argmax() + 1),
    "whether it is above the third": lambda h: h * (h > h.flatten().kthvalue(3).values),
    "the largest": lambda h: h / h.amax(),
    "sorted": lambda h: h.sort(0).values,
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", MIXED)
def test_samples_that_are_mixed_are_found_wherever_the_cause_lies(name: str, seed: int) -> None:
    """Catches mixing that one of two samples does not show: the largest may be in it, or it may be the last."""
    x = torch.rand(4, 4, generator=torch.Generator().manual_seed(seed)) + 0.5
    mixing = Code(lambda self, x: self.one(MIXED[name](x)).relu())
    says(lambda: parspike.plan(mixing, x), errors.TraceError, "mixes the samples", "test_errors.py")


def test_outputs_without_a_batch() -> None:
    model = Code(lambda self, x: self.one(x).relu().sum((0, 1)))
    says(lambda: parspike.plan(model, X), errors.TraceError, "batch")


# --------------------------------------------------------------------------------------------- files and extras


def test_files(tmp_path: Path) -> None:
    snn = parspike.convert(small(), X, T=2)
    path = snn.save(tmp_path / "net.parspike")
    says(lambda: snn.save(path), errors.FileError, str(path), "exists", "force=True", "--force")
    path.write_bytes(path.read_bytes()[:-1])
    says(lambda: parspike.load(path), errors.FileError, str(path), "truncated", "write or copy it again")
    says(lambda: parspike.load(tmp_path / "no"), errors.FileError, "there is no file", str(tmp_path / "no"))


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from parspike.cli.images import open_images

    real = builtins.__import__

    def without_sklearn(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    call = lambda: list(open_images("digits"))  # noqa: E731
    message = says(call, errors.MissingExtraError, "not installed", "pip install 'parspike[demo]'")
    assert "scikit-learn" in message or "sklearn" in message


# ------------------------------------------------------------ rarer mistakes, and what is still wrong with some


def network(forward: Callable[[Code, Tensor], Any], x: Tensor = X) -> Callable[[], Any]:
    return lambda: parspike.plan(Code(forward), x)


def _as_without_a_gpu(x: Tensor) -> Tensor:
    raise AssertionError("Torch not compiled with CUDA enabled")


RARE: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "samples mixed by statistics of the batch": (
        network(lambda self, x: self.one(x - x.mean(0)).relu()),
        errors.TraceError,
        "mixes the samples",
    ),
    "a batch norm without running statistics": (
        lambda: parspike.plan(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval(), X),
        errors.TraceError,
        "layer '1' has no running statistics (track_running_stats=False)",
    ),
    "dropout in evaluation": (
        lambda: parspike.convert(Code(lambda self, x: F.dropout(self.one(x).relu())), X),
        errors.UnsupportedError,
        "F.dropout(x, training=self.training)",
    ),
    "two samples exchanged": (
        network(lambda self, x: self.one(x).relu() + self.two(x).roll(1, 0), X[:2]),
        errors.TraceError,
        "mixes the samples",
    ),
    "a batch of fixed size": (lambda: parspike.plan(Fixed().eval(), X[:2]), errors.TraceError, "batch"),
    "a loop over samples": (
        network(lambda self, x: torch.stack([self.one(row).relu() for row in x])),
        errors.TraceError,
        "batch",
    ),
    "an example of another dtype": (
        lambda: parspike.convert(small(), X.double()),
        errors.InputError,
        "float64",
    ),
    "an example of bytes, as images are read": (
        lambda: parspike.convert(small(), (X * 255).byte()),
        errors.InputError,
        "the example input is torch.uint8, the network's weights are torch.float32",
    ),
    "a forward that asks for a GPU by itself": (
        network(lambda self, x: self.one(_as_without_a_gpu(x)).relu()),
        errors.InputError,
        "Where forward moves something to a GPU by itself, let it ask its input, .to(x.device)",
    ),
    "the class in place of the network": (
        lambda: parspike.convert(cast(Any, Code), X),
        errors.InputError,
        "Code is the class of a network: make one first, Code(…)",
    ),
    "network and data exchanged": (
        lambda: parspike.convert(cast(Any, X), cast(Any, small())),
        errors.CalibrationError,
        "the network comes first",
    ),
    "the path of the data": (
        lambda: parspike.convert(small(), "images/"),
        errors.CalibrationError,
        "the command line reads files",
    ),
    "sparse data": (lambda: parspike.convert(small(), X.to_sparse()), errors.CalibrationError, "pass x.to_dense()"),
    "a batch that is None": (lambda: parspike.convert(small(), [None]), errors.InputError, "is NoneType"),
    "the class of a recipe": (
        lambda: parspike.convert(small(), X, recipe=cast(Any, parspike.ClosedForm)),
        errors.OptionError,
        "got the class ClosedForm: make one, ClosedForm()",
    ),
    "fewer labels than samples": (
        lambda: parspike.measure(
            parspike.convert(small(), X, T=2, recipe="max"), [(X, torch.zeros(3, dtype=torch.long))]
        ),
        errors.InputError,
        "3 labels stand beside 8 samples",
    ),
    "a network lowered that was never converted": (
        lambda: parspike.lower.unit(cast(Any, small())),
        errors.InputError,
        "unit takes a converted network, got Sequential: parspike.convert makes one",
    ),
    "levels of none": (lambda: parspike.QCFS(0, 1.0), errors.OptionError, "levels must be an int of at least 1"),
    "text written without a tokenizer": (
        lambda: parspike.generate(small(), cast(Any, None), "once"),
        errors.InputError,
        "generate takes a tokenizer second, got NoneType",
    ),
    "calibration that is no iterable": (
        lambda: parspike.convert(small(), 3),
        errors.CalibrationError,
        "iterable",
    ),
    "calibration dict of unknown keys": (
        lambda: parspike.convert(small(), [{"foo": X}]),
        errors.CalibrationError,
        "inputs=",
    ),
    "T beyond what floats count": (
        lambda: parspike.convert(small(), X, T=10**30),
        errors.OptionError,
        "T ",
    ),
    "chunk True": (
        lambda: parspike.convert(small(), X, T=2).run(X, engine="parallel", chunk=True),
        errors.OptionError,
        "chunk",
    ),
    "momentum of text": (lambda: parspike.DAQCFS(momentum=cast(Any, "0.9")), errors.OptionError, "momentum"),
    "recipe of a list": (lambda: parspike.recipe_from_json(cast(Any, [1])), errors.OptionError, "recipe"),
    "network without an output": (network(lambda self, x: None), errors.TraceError, "output"),
    "outputs that are parameters alone": (
        network(lambda self, x: self.two.bias),
        errors.TraceError,
        "a constant: at least one output must be a tensor (B, …) that depends on the input",
    ),
    "output that is a part of a size": (
        network(lambda self, x: (self.one(x).relu(), x.shape[0] / 2)),
        errors.TraceError,
        "a number with a fraction made of its sizes: return the whole number that it is made of, such as x.shape[0]",
    ),
}


def test_inputs_without_numbers_and_images_are_told() -> None:
    """Would catch torch's own errors of a sparse tensor and of one on the meta device."""
    snn = parspike.convert(small(), X, T=2)
    says(lambda: snn(X.to_sparse()), errors.InputError, "sparse tensor", "to_dense()")
    says(lambda: snn(X.to("meta")), errors.InputError, "meta device")
    says(lambda: snn(Image.new("RGB", (2, 2))), errors.InputError, "is Image", "to_tensor(x)[None]")
    says(lambda: parspike.convert(small(), [{"img": X}]), errors.CalibrationError, "inputs=", "batch['img']")


@pytest.mark.parametrize("name", RARE)
def test_rare_mistakes(name: str) -> None:
    call, kind, part = RARE[name]
    says(call, kind, part)


class Gathered(nn.Module):
    """Two tensors in a dict, in a tuple, or in a dict of dicts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, batch: Any) -> Tensor:
        batch = batch.get("both", batch) if isinstance(batch, dict) else batch
        image, meta = batch.values() if isinstance(batch, dict) else batch
        return self.c((self.a(image) + self.b(meta)).relu())


Y = torch.rand(8, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("item", "hooked", "remedy"),
    [
        ({"image.data": X, "meta": Y}, False, "(self, image_data, meta): return self.network({'image.data': image_"),
        ({"both": {"image": X, "meta": Y}}, False, "def forward(self, both): return self.network({'both': both})"),
        ({"image": X, "meta": Y}, True, "(self, image, meta): return self.network({'image': image, 'meta': meta})"),
        (((X, Y), torch.zeros(8)), True, "def forward(self, a, b): return self.network((a, b))"),
    ],
)
def test_one_input_of_tensors_that_cannot_be_taken_apart_names_the_wrapper(
    item: Any, hooked: bool, remedy: str
) -> None:
    """Would catch a hook on the network that is passed over, and keys that are no names of arguments."""
    model = Gathered().eval()
    if hooked:
        model.register_forward_pre_hook(lambda module, args: args)
    with pytest.raises(errors.InputError, match=r"takes its tensors in one (dict|tuple|list), which") as said:
        parspike.convert(model, [item], T=4, recipe="max")
    assert remedy in str(said.value)


def test_the_wrapper_of_the_message_converts() -> None:
    model = Gathered().eval()

    class Wrapped(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Tensor, meta: Tensor) -> Tensor:
            return self.network({"image": image, "meta": meta})

    snn = parspike.convert(Wrapped(model).eval(), [{"image": X, "meta": Y}], T=64, recipe="max")
    wanted = model({"image": X, "meta": Y})
    assert float((snn(image=X, meta=Y) - wanted).norm()) < 0.1 * float(wanted.norm())


def test_an_item_that_fits_no_way_keeps_its_own_error() -> None:
    with pytest.raises(errors.InputError, match="fails on the example"):
        parspike.convert(small(), [(torch.rand(8, 5), torch.rand(8, 5))], T=2)


# ------------------------------------------------------------------------------------------ objects of another type


def spiking() -> parspike.SNN:
    return parspike.convert(small(), X, T=2, recipe="max")


@pytest.mark.parametrize("path", [None, 3, 1.5, [], b"net", X, "a\0b", "a" * 5000], ids=repr)
def test_what_is_no_path_is_told(path: Any, tmp_path: Path) -> None:
    """Would catch Python's TypeError, ValueError or OSError in place of the one error of files."""
    snn = spiking()
    for call in (
        lambda: parspike.load(path),
        lambda: snn.save(path),
        lambda: parspike.export(snn, path),
        lambda: parspike.read_spikes(path),
        lambda: parspike.write_spikes(snn, X, path),
        lambda: parspike.report(snn, [X], path),
        lambda: parspike.language(path),
        lambda: parspike.Tokenizer(path),
        lambda: parspike.from_onnx(path),
        lambda: parspike.Bench.read(path),
        lambda: parspike.train.load_trained(path),
    ):
        with pytest.raises((errors.FileError, errors.OptionError, errors.MissingExtraError)):
            call()


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda snn: parspike.convert(small(), X, T=4, inputs=cast(Any, 3)), ("inputs= must be a function", "int")),
        (lambda snn: parspike.convert(small(), X, T=4, progress=cast(Any, "x")), ("progress= must be a function",)),
        (lambda snn: parspike.convert(small(), X, T=4, seed=cast(Any, None)), ("seed= must be a whole number",)),
        (lambda snn: parspike.convert(small(), X, T=4, seed=cast(Any, 1.5)), ("seed= must be a whole number", "1.5")),
        (lambda snn: parspike.convert(small(), X, T=4, seed=2**64), ("seed= must be a whole number",)),
        (lambda snn: parspike.plan(small(), X, neuron=cast(Any, "if")), ("neuron is 'if'", "parspike.IF()")),
        (lambda snn: parspike.measure(snn, [X], progress=cast(Any, 3)), ("progress= must be a function",)),
        (lambda snn: parspike.perplexity(snn, [X], inputs=cast(Any, 3)), ("inputs= must be a function",)),
        (lambda snn: parspike.neurobench(snn, [X], progress=cast(Any, 3)), ("progress= must be a function",)),
        (lambda snn: parspike.diagnose(snn, small(), [X], progress=cast(Any, 3)), ("progress= must be a function",)),
        (lambda snn: parspike.sweep(small(), X.split(2), T=[1], each=cast(Any, 3)), ("each= must be a function",)),
        (lambda snn: parspike.sweep(small(), X.split(2), T=[1], seed=cast(Any, "1")), ("seed= must be",)),
        (lambda snn: parspike.tune(small(), X.split(2), codes=cast(Any, 3)), ("codes is 3",)),
        (lambda snn: parspike.recipe_to_json(cast(Any, None)), ("expected a recipe", "None")),
        (lambda snn: parspike.kind_from_text(cast(Any, None)), ("'None' is no neuron",)),
        (lambda snn: parspike.QCFS(4, cast(Any, None)), ("v_threshold must be finite",)),
        (lambda snn: parspike.speed(small(), X, T=cast(Any, 3)), ("T= must be a list",)),
        (lambda snn: parspike.speed(small(), X, engines=cast(Any, None)), ("engines= must be a list",)),
        (lambda snn: parspike.bench(cast(Any, None), {}, "x.jsonl"), ("bench takes what Bench.read",)),
        (lambda snn: parspike.train.with_lif(small(), cast(Any, None)), ("T = None",)),
        (lambda snn: parspike.train.make_network(cast(Any, None)), ("expected a TrainingRecipe",)),
        (lambda snn: parspike.train.Devices(nodes=cast(Any, None)), ("--nodes None",)),
        (lambda snn: parspike.train.Decoder(threads=0), ("threads is 0",)),
        (lambda snn: parspike.train.with_qcfs(small(), v_threshold=cast(Any, None)), ("v_threshold = None",)),
    ],
)  # fmt: skip
def test_options_of_another_type_are_told(call: Callable[[parspike.SNN], Any], parts: tuple[str, ...]) -> None:
    """Would catch an error of Python's, which names a line of parspike instead of the option."""
    says(lambda: call(spiking()), errors.OptionError, *parts)


def test_what_is_no_network_is_told() -> None:
    says(lambda: parspike.train.with_qcfs(cast(Any, None)), errors.InputError, "expected a torch.nn.Module, got None")
    says(lambda: parspike.export(spiking(), "n.onnx", example=3), errors.InputError, "export: example")
