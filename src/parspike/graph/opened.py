"""A network whose one input is a dict, a tuple or a list of tensors, as one that takes each of them by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parspike.errors import InputError
from parspike.graph.ir import flattened, leaves, map_tree
from parspike.graph.quiet import outputs
from parspike.graph.trace import within

__all__ = ["LABELS", "opened", "taking"]

OPENED = "_parspike_opened"
LABELS = ("label", "labels", "label_ids", "target", "targets")
"""Entries of a dict that hold labels."""


def opened(model: nn.Module, candidates: Sequence[Any]) -> tuple[nn.Module, Any] | None:
    """The network that takes each tensor of its one input by itself, and these tensors as its example: of the
    candidates, dicts, tuples and lists of tensors, the first that the network takes. None where it takes none.

    The entries of a dict are its keyword inputs, those of a tuple or a list come in order. All else, modules, tensors
    and names, is the network's own. Raises `InputError` where the network takes a candidate that cannot be opened.
    """
    if not isinstance(model, nn.Module) or hasattr(model, OPENED):
        return None
    # Who hands a list on as separate inputs hands on a tuple.
    for whole in (form for one in candidates for form in ([one, list(one)] if isinstance(one, tuple) else [one])):
        found = list(leaves(whole)) if isinstance(whole, (dict, tuple, list)) else []
        if not found or not all(isinstance(leaf, Tensor) for leaf in found):
            continue
        network, (args, kwargs) = _by_each(model, whole), ((), dict(whole)) if isinstance(whole, dict) else (whole, {})
        if network is not None and _runs(network, tuple(args), kwargs):
            return network, kwargs or tuple(args)
        if _runs(_Whole(model, whole), tuple(found), {}):
            raise InputError(
                f"{type(model).__name__} takes its tensors in one {type(whole).__name__}, which a converted network "
                f"does not: {flattened(whole)}"
            )
    return None


def taking(model: Callable[..., Any], args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> Callable[..., Any]:
    """A network that is called with these inputs one by one, as its conversion is: the network itself, or opened."""
    example = dict(kwargs) if kwargs else tuple(args)
    if not isinstance(model, nn.Module) or _runs(model, tuple(args), kwargs):
        return model
    found = opened(model, [example])
    return model if found is None else found[0]


def _by_each(model: nn.Module, whole: Any) -> nn.Module | None:
    """None where hooks on the network want its one input, where its code is no method of a class, and where an entry is
    no tensor or its key no name of an argument."""
    model = within(model)
    values = list(whole.values() if isinstance(whole, dict) else whole)
    named = not isinstance(whole, dict) or all(isinstance(key, str) and key.isidentifier() for key in whole)
    hooked = model._forward_pre_hooks or model._forward_hooks or "forward" in vars(model)
    flat = all(isinstance(value, Tensor) for value in values)
    if hooked or not named or not flat or isinstance(model, torch.jit.ScriptModule):
        return None
    kind, form = type(model), list if isinstance(whole, list) else tuple

    def by_name(self: Any, **tensors: Tensor) -> Any:
        return kind.forward(self, tensors)

    def in_order(self: Any, *tensors: Tensor) -> Any:
        return kind.forward(self, form(tensors))

    own = {"forward": by_name if isinstance(whole, dict) else in_order, "__module__": kind.__module__, OPENED: True}
    made = object.__new__(type(kind.__name__, (kind,), own))
    made.__dict__ = model.__dict__
    return made


def _runs(model: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> bool:
    try:
        outputs(model, args, kwargs)
    except Exception:  # noqa: BLE001 (whatever it raises, it does not take them)
        return False
    return True


class _Whole(nn.Module):
    """A network that is given its tensors in one dict, tuple or list, of any nesting."""

    def __init__(self, network: nn.Module, example: Any) -> None:
        super().__init__()
        self.network, self.example = network, example

    def forward(self, *tensors: Tensor) -> Any:
        rest = iter(tensors)
        return self.network(map_tree(lambda _: next(rest), self.example))
