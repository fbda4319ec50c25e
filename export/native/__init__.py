"""The ai.athena codebook operators as a native library for stock onnxruntime and onnxruntime-genai.

build.py compiles the C files beside it with the compiler of the `ziglang` package, for this machine or another one.
A registered library wins over the function bodies in the file; without it the file still runs everywhere.
"""
