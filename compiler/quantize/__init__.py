"""Quantization: methods (one file each), the packed form they write, and the ways of a checkpoint through them."""
