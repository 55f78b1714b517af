"""Tests of onnxcomp."""
