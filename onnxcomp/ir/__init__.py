"""The model in memory: loading and saving without loss, and the only way to change it."""

from onnxcomp.ir.backend import ir
from onnxcomp.ir.edit import Edit
from onnxcomp.ir.model import Model

__all__ = ["Edit", "Model", "ir"]
