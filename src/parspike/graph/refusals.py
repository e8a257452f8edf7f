"""What an operator becomes by the table, and what no spiking network can have: why, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from parspike.graph.ops import TABLE, Role

__all__ = ["EXPERTS", "PADDED", "REFUSED", "judge", "remedy"]

RANDOM = "it draws random numbers, and a converted network computes the same every time"
PACKED = "the lengths of packed sequences are numbers in a tensor, and a spiking network has one fixed graph"
REFUSED: dict[str, str] = {name: reason for reason, names in {
    PACKED: "lstm gru rnn_tanh rnn_relu _pack_padded_sequence",
    RANDOM: "rand randn randint rand_like randn_like randint_like randperm bernoulli multinomial normal poisson "
            "dropout native_dropout alpha_dropout feature_dropout feature_alpha_dropout rrelu fractional_max_pool2d "
            "fractional_max_pool3d",
}.items() for name in names.split()}  # fmt: skip
"""Operators that are refused for a reason of their own, by name."""
MIXED = "it takes all dimensions together, the batch too, and so mixes the samples"
WHOLE = frozenset(f"aten.{name}.default" for name in ("mean", "max", "min", "prod", "any", "all", "median"))
"""Operators that make one number of a whole tensor, and have another form for some of its dimensions."""

PADDED = (
    "give the recurrent layer the padded batch, without pack_padded_sequence, and take each sequence's last output by "
    "its length (gather)"
)
"""What networks with packed sequences need."""
EXPERTS = "call model.set_experts_implementation('batched_mm')"
"""What a mixture of experts of transformers needs, whose other forms loop over experts or sort by them."""


def judge(target: str, varying: Sequence[int]) -> tuple[Role, str]:
    """Role of an operator, and why. varying: of every positional argument, which may be a list, how many of its values
    depend on the network's input.
    """
    row = TABLE.get(target)
    if row is None:
        packet = target.split(".")[1] if "." in target else target
        return Role.UNKNOWN, MIXED if target in WHOLE else REFUSED.get(packet, f"no rule for {target}")
    if not any(varying):
        return Role.SYNAPSE, ""  # the result is a constant, so any operator will do
    if row.product and sum(varying) > 1:
        return Role.ANALOG, "a product of two values that both depend on the input"
    if row.varying is not None and any(v for i, v in enumerate(varying) if i not in row.varying):
        return Role.ANALOG, "a weight or divisor that depends on the input"
    return row.role, row.reason


def remedy(target: str, role: Role) -> str:
    """What the user can do about an operator that stands in the way."""
    packet = target.split(".")[1] if "." in target else target
    if role is Role.ANALOG:
        return "convert with strict=False to accept it"
    if "grouped_mm" in target:
        return f"{EXPERTS} first, which chooses experts by products"
    if target in WHOLE:
        return f"name the other dimensions, such as {packet}(dim=1), of x.flatten(1) where there are several"
    if packet in ("dropout", "feature_dropout"):
        return "write F.dropout(x, training=self.training), which drops nothing after model.eval()"
    if REFUSED.get(packet) == RANDOM:
        return "draw no random numbers in evaluation, or make them an input of the network"
    if packet in REFUSED:
        return PADDED
    return (
        "replace it by an operator of the table (docs/operators.md), or keep the part of the network that needs it "
        "outside the model that is converted"
    )
