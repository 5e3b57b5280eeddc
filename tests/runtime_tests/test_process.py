"""What a runtime's child process gets of the environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runtime_tests.process import child_environment

CREDENTIALS = [
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_OIDC_ID_TOKEN",
    "GITHUB_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "OPENAI_API_KEY",
    "DATABASE_URL",
    "HTTPS_PROXY",
    "PIP_INDEX_URL",
    "SSH_AUTH_SOCK",
    "NIX_CONFIG",
    "TVM_CI_TOKEN",
    "PYTHON_KEYRING_PASSWORD",
]
NEEDED = ["OMP_NUM_THREADS", "LD_LIBRARY_PATH", "LC_ALL", "XDG_CACHE_HOME", "TVM_NUM_THREADS", "HF_HUB_OFFLINE"]


def in_a_child() -> dict[str, str]:
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_no_credential_reaches_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.setenv(name, "hf_secret")
    assert "hf_secret" not in in_a_child().values()


def test_what_a_runtime_is_set_up_with_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NEEDED:
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    environment = in_a_child()
    assert {name: environment.get(name) for name in NEEDED} == dict.fromkeys(NEEDED, "7")
    assert environment["PYTHONPATH"].split(":") == [str(Path(__file__).parents[2]), "/mine"]
    assert {"PATH", "HOME"} <= set(environment)
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
