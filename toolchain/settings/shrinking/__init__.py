"""How a model is made smaller before it is quantized: the settings of `shrink`."""
