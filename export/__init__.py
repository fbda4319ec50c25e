"""The op contract, the file formats and the ONNX graph. Importing this package loads numpy at most."""

__version__ = "0.1.0"
