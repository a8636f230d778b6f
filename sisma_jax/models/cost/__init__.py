"""Multiply-accumulates of a model: counted by hand, and as XLA counts them."""
