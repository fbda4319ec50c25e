"""From a quantized checkpoint to the nodes of an ONNX graph."""
