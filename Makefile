# demo, test, check and bench, each in its own environment (.venv/). Needs Python 3.11 or newer, nothing else.
.PHONY: demo test check bench clean
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
JOBS ?= 2

# The first of these that runs, is 3.11 or newer and can make environments. Override with make PYTHON=...
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

# The wheel of torch that brings no CUDA libraries. Used on Linux, where the usual index serves the CUDA build.
TORCH_CPU := $(shell sed -n 's/^torch==//p' constraints.txt)+cpu
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

demo: $(READY)
	$(VENV)/bin/edgewright run recipes/quickstart.yaml

test: $(READY)
	@# whole files, so that what a file's tests share is built once; tests/conftest.py says in which order
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(READY)
	$(PY) -m pip install -q -c constraints.txt --config-settings editable_mode=compat -e ".[bench]"
	-$(PY) -m pip install -q -c constraints.txt --config-settings editable_mode=compat -e ".[llamacpp]"
	$(PY) -m tests.bench

clean:
	rm -rf $(VENV) build

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "edgewright needs Python 3.11 or newer with venv; none was found. Install one or run: make PYTHON=/path/to/python" >&2; exit 3; }
	"$(PYTHON)" -m venv $(VENV)
	@# An index that has the CPU build of torch is asked first, then PyTorch's own with a short patience.
	@# Neither is required: without them the next line installs whatever torch the configured index serves.
	@test "$$(uname -s)" != Linux \
		|| $(PY) -m pip install -q --no-deps "torch==$(TORCH_CPU)" 2>/dev/null \
		|| $(PY) -m pip install -q --no-deps --timeout 10 --retries 1 --index-url $(TORCH_CPU_INDEX) "torch==$(TORCH_CPU)" 2>/dev/null \
		|| echo "no index offers torch $(TORCH_CPU); the default build of torch follows"
	@# A plain path rather than an import hook: a folder named edgewright beside a script, such as a clone, hides nothing.
	$(PY) -m pip install -c constraints.txt --config-settings editable_mode=compat -e ".[all,dev]"
	touch $@
