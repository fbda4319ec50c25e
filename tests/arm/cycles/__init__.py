"""Cycles of inner loops on ARM cores that are not here, by LLVM's model of them: our kernels, and llama.cpp's."""
