"""Networks as data: `torch.export` → `Graph`, the op table, the rewriting, the walk."""

from parspike.graph.encode import encodable, with_encoders
from parspike.graph.ir import (
    Device,
    Graph,
    Hook,
    Input,
    Node,
    Param,
    Ref,
    Schedule,
    Size,
    Stream,
    device_of,
    leaves,
    map_tree,
    on_device_of,
    walk,
)
from parspike.graph.ops import Activation, Clip, Curve, Quantised, Role
from parspike.graph.order import nested
from parspike.graph.register import register
from parspike.graph.rewrite import rewrite
from parspike.graph.same import check_same
from parspike.graph.trace import trace

__all__ = [
    "Activation",
    "Clip",
    "Curve",
    "Device",
    "Graph",
    "Hook",
    "Input",
    "Node",
    "Param",
    "Quantised",
    "Ref",
    "Role",
    "Schedule",
    "Size",
    "Stream",
    "check_same",
    "device_of",
    "encodable",
    "leaves",
    "map_tree",
    "nested",
    "on_device_of",
    "register",
    "rewrite",
    "trace",
    "walk",
    "with_encoders",
]
