"""Function bodies of the ai.athena operators: standard ONNX operators only."""
