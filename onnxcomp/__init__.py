"""Makes any ONNX model smaller and faster on the runtime it is deployed on, and proves that it works."""

__version__ = "0.1.0"
