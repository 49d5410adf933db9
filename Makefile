# Two commands need nothing but Python 3.11 to 3.13: `make run` and `make test`.
PYTHON ?= python3
PROFILE ?= tiny
WORKSPACE ?= workspace
VENV := .venv
BIN := $(VENV)/bin
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' vibethinker/__init__.py)
TORCH := $(shell sed -n 's/^torch==\([^ ;]*\).*/\1/p' constraints.txt)
# A machine with an NVIDIA GPU gets the CUDA build, a Mac its own; any other Linux must not download CUDA.
CPU_ONLY := $(if $(filter Linux,$(shell uname -s)),$(if $(shell command -v nvidia-smi),,yes))

# Else each of the many processes that a run or a test starts compiles all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-quick test-long faults lint docs constraints check-constraints dist clean

run: $(VENV)/installed-dev
	@$(BIN)/vibethinker run --profile $(PROFILE) --workspace $(WORKSPACE)

test: $(VENV)/installed-dev lint check-constraints
	$(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile

# What needs neither a server nor a training.
test-quick: $(VENV)/installed-dev
	$(BIN)/python -m pytest --quick -m "not (service or gpu or slow or long)" -n 2 --dist loadfile

test-long: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m long

# Break a run everywhere and at random moments (hours; stopped, it goes on where it was), and write the tables.
faults: $(VENV)/installed-dev
	$(BIN)/python -m tests.faults --profile micro --random 40 --output docs/results/faults.md
	$(BIN)/python -m tests.faults --profile tiny --random 40 --no-points --alone --folder workspace-faults-tiny \
	  --output docs/results/faults-tiny.md

# The pages as a site, in build/site.
docs: $(VENV)/installed-dev
	$(BIN)/python -m docs.tools.configuration
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed: name one by PYTHON=python3.12, say")'
	@echo "Making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv

# The CPU build of torch comes from the package sources this machine is set up with, or else from PyTorch's own,
# which uv knows; where neither has one, the ordinary build is installed.
$(VENV)/torch: constraints.txt | $(BIN)/uv
	@echo "Installing torch $(TORCH) into $(VENV) ..."
ifeq ($(CPU_ONLY),yes)
	@$(BIN)/python -m pip install --quiet "torch==$(TORCH)+cpu" 2>/dev/null \
	  || UV_HTTP_TIMEOUT=20 $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend cpu "torch==$(TORCH)" 2>/dev/null \
	  || $(BIN)/python -m pip install --quiet "torch==$(TORCH)"
else
	@$(BIN)/uv pip install --quiet --python $(BIN)/python "torch==$(TORCH)"
endif
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt $(VENV)/torch
	@echo "Installing everything else into $(VENV) ..."
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	@touch $@

# Write the constraints anew from pyproject.toml; the pins keep to the set that was proven together.
constraints: | $(BIN)/uv
	echo "torch==$(TORCH)" | $(BIN)/uv pip compile pyproject.toml --extra dev --universal --upgrade --quiet \
	  --no-annotate --no-header --constraint - --output-file constraints.txt
	echo "vllm==0.26.0" | $(BIN)/uv pip compile pyproject.toml --extra train --extra unsloth --extra vllm --upgrade \
	  --python-version 3.12 --python-platform x86_64-manylinux_2_31 --quiet --no-annotate --no-header --constraint - \
	  --output-file constraints-gpu.txt

# Both committed sets still resolve, each alone.
check-constraints: | $(BIN)/uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --constraint constraints.txt --quiet --output-file /dev/null
	$(BIN)/uv pip compile pyproject.toml --extra train --extra unsloth --extra vllm --constraint constraints-gpu.txt \
	  --python-version 3.12 --python-platform x86_64-manylinux_2_31 --quiet --output-file /dev/null

# The sdist, the wheel that is built from it, and what the environment in which both were tested holds (CycloneDX). That
# tool has an environment of its own: in this one its rfc3987-syntax would make each import of jsonschema, and so of
# Prefect, take 5 s longer.
dist: $(VENV)/installed-dev
	rm -rf dist
	$(BIN)/uv build --quiet --build-constraints constraints.txt --out-dir dist
	$(BIN)/uv tool run --from cyclonedx-bom==7.5.0 cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-file dist/vibethinker-$(VERSION).cdx.json $(BIN)/python

clean:
	rm -rf $(VENV) build dist *.egg-info
