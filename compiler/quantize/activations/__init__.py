"""What codes of activations stand for, found on calibration samples over the quantized weights. Loads torch.

`run.py` has the whole of it. Which values are rounded is `compiler/activations.py`'s, what a component is calibrated on
its driver's.
"""
