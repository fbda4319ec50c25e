"""The source model: its files, names, stored weights, configuration, and transformations before quantization."""
