"""A checkpoint's files, a stand-in for the Hub that has them, and the real client's cache in a child process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.edgewright.hub.identity import WRITER
from tests.edgewright.hub.writable import WritableHub
from tests.edgewright.hub_server import HubServer

FILES = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "README.md": b"---\nlicense: apache-2.0\n---\n# tiny\n",
    "config.json": b'{"model_type": "ministral3"}',
    "model-00001-of-00002.safetensors": b"first shard" * 100,
    "model-00002-of-00002.safetensors": b"second shard" * 100,
    "model.safetensors.index.json": b"{}",
    "consolidated.safetensors": b"the same weights in another layout",
    "pytorch_model.bin": b"a pickle",
    "modeling_custom.py": b"import os",
    "original/config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
}
WANTED = {
    "README.md",  # states the licence
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
}


def digest_of(name):
    content = FILES[name]
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


FETCH = """
import json, sys
from pathlib import Path
from edgewright.hub import fetch
stages = []
try:
    folder, revision = fetch(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]), lambda *a: stages.append(a))
except Exception as error:
    print(json.dumps({"error": str(error), "exit_code": getattr(error, "exit_code", None)}))
else:
    files = {p.relative_to(folder).as_posix(): p.read_bytes().decode() for p in folder.rglob("*") if p.is_file()}
    names = sorted({stage[0] for stage in stages})
    print(json.dumps({"revision": revision, "files": files, "last": stages[-1], "stages": names}))
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def child(hub, tmp_path):
    """Run Python code with the client's cache below tmp_path and the server as the Hub; what it prints as JSON."""

    def child(code, *arguments, **env):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", **env}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=inherited | settings,
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) | {"stderr": done.stderr}

    return child


@pytest.fixture
def fetch(child, tmp_path):
    def fetch(revision=None, repo="acme/tiny", **env):
        return child(FETCH, repo, json.dumps(revision), str(tmp_path / "out" / "recipe.lock.json"), **env)

    return fetch


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "home" / "hub" / "models--acme--tiny"


# The client reads its settings when it is imported, so a process of its own has it; each command is a fork of that one.
COMMANDS = """
import json, os, sys
import edgewright.cli, edgewright.bars, edgewright.hub.publish, edgewright.hub.pull, huggingface_hub.hf_api, httpx2
import model_signing.signing, model_signing.verifying, model_signing.hashing, sigstore.oidc
import cyclonedx.model.bom, cyclonedx.output.json, cyclonedx.contrib.license.factories, device_farm
for name in device_farm.list_profiles():
    device_farm.load_profile(name)
from huggingface_hub import CommitOperationAdd, ModelCard
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.update(job["env"])
        for number, name in (1, "stdout"), (2, "stderr"):
            os.dup2(os.open(job["scratch"] + "/" + name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(job["scratch"])
        edgewright.cli.main(job["arguments"])
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """A command that ended: its exit code and what it printed."""

    code: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)


@pytest.fixture(scope="package")
def _served(tmp_path_factory):
    with WritableHub() as server:
        home = tmp_path_factory.mktemp("home")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", COMMANDS],
            env=inherited | settings,
            cwd=Path(__file__).parents[3],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        yield server, process
        process.stdin.close()
        process.wait(timeout=20)


@pytest.fixture
def writable(_served):
    """The Hub that can be written to, empty."""
    server, _ = _served
    server.reset()
    return server


@pytest.fixture
def edgewright(_served, tmp_path_factory):
    """Run the command line, with the token of somebody who may write; in no output is there ever a token."""
    _, process = _served

    def edgewright(*arguments, token=WRITER, **env):
        scratch = tmp_path_factory.mktemp("scratch")
        job = {
            "arguments": list(map(str, arguments)),
            "scratch": str(scratch),
            "env": ({"HF_TOKEN": token} if token else {}) | env,
        }
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        edgewright.process = int(process.stdout.readline())
        code = int(process.stdout.readline())
        ended = Ended(code, (scratch / "stdout").read_text(), (scratch / "stderr").read_text())
        assert "MustStaySecret" not in ended.out + ended.err
        assert "Traceback" not in ended.err, ended.err
        return ended

    return edgewright
