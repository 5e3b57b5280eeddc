"""Settings for every test: no network, repeatable property tests, and threads that share the machine."""

from __future__ import annotations

import gc
import os
import signal
import sys

# Nothing here may reach the real Hub; the tests that use the Hub's client start it in a child process of their own.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# Hundreds of processes import our modules, which containers often ask Python to compile anew each time.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that wait for work leave the core to the other worker, whose work they would else wait for: where a test has
# two of them (calibration, the runtimes), spinning made it eight times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0")
# TVM ties its caller to the first core, for good and with every child process: both workers to the same one.
os.environ.setdefault("TVM_BIND_THREADS", "0")

import pytest
from hypothesis import HealthCheck, settings

# The same examples on every run, so that a red build is always the change's own; `--hypothesis-profile=search` looks
# for new ones.
settings.register_profile("edgewright", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", settings.get_profile("edgewright"), derandomize=False, max_examples=1000)
settings.load_profile("edgewright")

# What takes longest begins first, so that workers which take whole files end together.
SLOWEST = (
    "compiler/targets/test_geometries.py",
    "edgewright/test_streams.py",
    "compiler/targets/onnx/test_text.py",
    "e2e/test_reproducible.py",
    "compiler/targets/coreml/test_decoder.py",
    "compiler/targets/tvm/test_artifact.py",
    "e2e/test_components.py",
    "edgewright/test_run.py",
    "runtime_tests/test_task.py",
    "compiler/targets/tvm/test_native.py",
    "fuzz/test_checkpoints.py",
    "compiler/test_keys.py",
    "runtime_tests/sessions/test_tvm.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: at for at, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0].removeprefix("tests/"), len(places)))


def pytest_collection_finish() -> None:
    """What was imported stays: to look through it takes a third of a second each time garbage is collected."""
    gc.collect()
    gc.freeze()


# A shell that starts the tests in the background has them ignore Ctrl-C, and nohup a hangup: so would every process
# that they start, and tests send both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
