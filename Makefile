VENV := .venv
PYTHON := $(VENV)/bin/python
UV := $(VENV)/bin/uv
READY := $(VENV)/.ready

# pip separates find-links by blanks, uv by commas, and uv does not read pip's settings
empty :=
comma := ,
UV_FIND_LINKS ?= $(subst $(empty) $(empty),$(comma),$(strip $(PIP_FIND_LINKS)))
ifneq ($(UV_FIND_LINKS),)
export UV_FIND_LINKS
endif

SANITIZERS = $(shell g++ -print-file-name=libasan.so) $(shell g++ -print-file-name=libstdc++.so)

.PHONY: demo test slow long crash shim docs check constraints

demo: $(READY)  ## set up, then the main job: capture, train, probe, report
	$(PYTHON) -m workbench demo

test: $(READY)  ## set up, then the tests that end in three minutes
	$(VENV)/bin/pytest --numprocesses auto --dist loadfile

slow: $(READY)  ## tests that take minutes
	$(VENV)/bin/pytest -m "slow and not long and not gpu and not network" --numprocesses auto --dist loadfile

long: $(READY)  ## methods over many seeds, subjects and sizes; not part of every CI run
	$(VENV)/bin/pytest -m "long and not gpu and not network" --numprocesses auto --dist loadfile

crash: $(READY)  ## fault injection
	$(VENV)/bin/pytest -m crash --numprocesses auto

shim: $(READY)  ## CUDA kernels: through nvcc where there is one, and on the CPU under sanitizers (needs g++)
	WORKBENCH_SHIM=sanitized ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$(SANITIZERS)" \
	    $(VENV)/bin/pytest tests/kernels/cuda -m "not gpu" --numprocesses auto

docs: $(READY)  ## the documentation as a site, warnings are errors; the notebooks run from a clean kernel
	$(UV) pip install --quiet --python $(PYTHON) --constraint constraints.txt --group docs
	$(VENV)/bin/sphinx-build -b html -W --keep-going --quiet docs docs/_build/html

check: $(READY)  ## types, lint, spelling
	$(VENV)/bin/mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell README.md CONTRIBUTING.md docs changes workbench cache kernels plugins probes --skip "*.json,*.safetensors,docs/_build"

constraints: | $(UV)  ## write constraints.txt anew from pyproject.toml and constraints.in
	env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(UV) pip compile --quiet --universal --python-version 3.11 --no-annotate \
	    --no-header --group dev --group docs --constraint constraints.in --output-file constraints.txt pyproject.toml

$(UV):
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet uv

$(READY): pyproject.toml setup.py constraints.txt | $(UV)
	$(UV) pip install --quiet --python $(PYTHON) --constraint constraints.txt --group dev --editable .
	touch $@
