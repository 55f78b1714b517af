"""What the server that forks commands has loaded; no session is ever opened in it."""

import onnx.checker
import onnx.shape_inference
import onnx_ir
import onnxruntime

import onnxcomp.cli.app
import onnxcomp.cli.compare
import onnxcomp.cli.optimize
import onnxcomp.cli.worker
import onnxcomp.compression
import onnxcomp.ir
import onnxcomp.optimization
import onnxcomp.report
import onnxcomp.runtime
import onnxcomp.samples
import onnxcomp.verify

LOADED = (onnx, onnx_ir, onnxruntime, onnxcomp)
