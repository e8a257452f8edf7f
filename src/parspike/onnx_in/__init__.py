"""ONNX files as networks of torch."""

from parspike.onnx_in.network import OnnxNetwork, from_onnx

__all__ = ["OnnxNetwork", "from_onnx"]
