"""Benchmarks: `make bench`. Every claim about speed or memory in the README comes from here, as ratios in one run."""
