"""Calibrated quantization over a captured graph, segment by segment; it knows no architecture. Loads torch.

`run.py` has the whole of it; what a text decoder brings along (its module, its samples) is in `text.py`.
"""
