"""Calibrated quantization over a captured graph, segment by segment; it knows no architecture. Loads torch.

`run.py` has the whole of it; what a model brings along (its modules, its samples) is its driver's.
"""
