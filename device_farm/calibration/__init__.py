"""Fits what ``device_farm.latency`` predicts with: ``python -m device_farm.calibration`` writes ``coefficients.json``.

What lives here: published measurements (``data/``, with their origins in ``data/README.md``), the fits, and the errors
that they reach on what was left out. What must not: predicting. Nothing is random: the same rows give the same file.
"""
