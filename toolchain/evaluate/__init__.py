"""How good a model is: perplexity, multiple choice, lm-eval-harness, arrays of an accelerator emulated."""
