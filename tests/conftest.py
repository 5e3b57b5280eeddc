"""Settings for every test: no network, repeatable property tests, one thread per worker when tests run in parallel."""

from __future__ import annotations

import os
import signal

# Nothing here may reach the real Hub; the tests that use the Hub's client start it in a child process of their own.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

# The same examples on every run, so that a red build is always the change's own; `--hypothesis-profile=search` looks
# for new ones.
settings.register_profile("edgewright", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", settings.get_profile("edgewright"), derandomize=False, max_examples=1000)
settings.load_profile("edgewright")

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every process they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
