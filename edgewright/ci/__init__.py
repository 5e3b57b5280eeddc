"""Edgewright in CI: the jobs of a matrix, results as JUnit XML and as a step summary, and baselines.

What must not live here: building and validating (`api.py`), and how a report looks to its other readers.
"""
