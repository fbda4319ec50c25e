"""Texts, activations, Hessians and gradients that quantization is guided by."""
