"""What an ONNX file says, as plain records: read directly where that leaves no doubt, else by the onnx package."""
