"""The pass pack that comes with onnxcomp, found through the same entry points as anybody's."""
