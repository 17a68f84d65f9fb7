# VoxSAM's commands. Each one first sets up what it needs in .venv, once; `make help` lists them.
# Needs Python 3.11 to 3.13 (PYTHON=/path/to/python3.12 chooses one), make and git; no GPU.

SHELL := /bin/sh
BIN := .venv/bin
INSTALLED := .venv/.installed
CANDIDATES := python3.11 python3.12 python3.13 python3 python
# Extra arguments for test, bench, serve and train-demo: make test ARGS="-k geometry"
ARGS ?=
# What train-demo trains on: a folder in MSD / nnU-Net layout; generated scans where there is none.
DATA ?= $(firstword $(wildcard ../shared/data/sarcoma_ct) train-demo/phantoms)

# nnU-Net without its dependencies, which end in torchvision; the extra `compare` holds those that it imports.
NNUNET := nnunetv2 dynamic-network-architectures acvl-utils batchgenerators batchgeneratorsv2

# The page is built where Node.js is; everything else works without it.
PAGE := src/voxsam/server/static/index.html
PAGE_SOURCES := $(shell find viewer -path viewer/node_modules -prune -o -type f -print 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup demo serve viewer web page-if-node train-demo test test-all test-viewer test-processors check bench docs audit clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile

setup: $(INSTALLED) page-if-node ## install VoxSAM and its tools into .venv; build the page where Node.js is

demo: $(INSTALLED) ## segment an example from one click and draw it
	@$(BIN)/voxsam demo -o demo
	@ls demo/*.png >/dev/null && printf 'The picture: %s\n' "$$PWD"/demo/*.png

serve: $(INSTALLED) page-if-node ## open the page on the demo scan (ARGS: folders and options of voxsam serve)
	@$(BIN)/voxsam serve --browser $(if $(wildcard dist/web/index.html),--web dist/web) $(ARGS)

viewer: $(PAGE) ## build the page into the package (needs Node.js 20.19 or newer)

# The page that needs no server, with this model in it.
WEB_MODEL ?= voxsam-tiny

web: $(INSTALLED) | viewer/node_modules ## build dist/web: a folder for any web space, that segments in the browser
	@rm -rf build/web-model
	@$(BIN)/voxsam weights export $(WEB_MODEL) --format onnx -o build/web-model
	@$(BIN)/voxsam demo -o build/web-demo >/dev/null
	@cd viewer && npm run --silent build:web
	@du -sh dist/web

page-if-node:
	@if ! command -v npm >/dev/null 2>&1; then echo "Without Node.js the page is not built; the rest works."; \
	elif ! $(MAKE) --no-print-directory viewer; then echo "The page was not built (see above); the rest works."; fi

train-demo: $(INSTALLED) ## prepare, train some minutes, evaluate, report (DATA=FOLDER: your scans)
	@test -e "$(DATA)" || $(BIN)/voxsam phantoms -o "$(DATA)"
	@$(BIN)/voxsam prepare "$(DATA)" -o train-demo/prepared --spacing 3,3,3
	@$(BIN)/voxsam train recipes/train-demo.yaml --data train-demo/prepared -o train-demo/run $(ARGS)
	@$(BIN)/voxsam evaluate "$(DATA)" --held-out train-demo/prepared --model train-demo/run/model.safetensors \
	    --trials 3 --corrective 3 -o train-demo/evaluation

# Tests run side by side, each file in one process, which has one thread; in an order that SEED draws (the header has it).
JOBS ?= 2
SEED ?= $(shell date +%s)
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --shuffle $(SEED)

test: $(INSTALLED) ## the tests of every day: all units, golden values, one path of each feature (ARGS goes to pytest)
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: $(INSTALLED) ## every test (ARGS goes to pytest)
	@$(PYTEST) $(ARGS)

test-viewer: viewer/node_modules ## the tests of the page's own code (needs Node.js)
	@cd viewer && npm test --silent

# What another processor's kernels must not change: the last bits of NumPy's products, and PyTorch without AVX-512.
PROCESSOR_TESTS := tests/test_geometry.py tests/test_prompts.py tests/test_resample.py tests/test_preprocess.py \
    tests/interactive/test_session.py tests/network/test_reference.py tests/kernels

test-processors: $(INSTALLED) ## fast tests as on a processor with other kernels, and as on one without AVX-512
	@OPENBLAS_CORETYPE=Haswell $(PYTEST) -q -m "not slow" $(PROCESSOR_TESTS)
	@ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -q -m "not slow" $(PROCESSOR_TESTS)

check: $(INSTALLED) ## lint, format, types, and the direction of imports
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/python -m pyright
	@$(BIN)/python -m pytest -q tests/test_imports.py

bench: $(INSTALLED) ## measure speed and memory (ARGS goes to benchmarks/run.py)
	@$(BIN)/python -m benchmarks.run $(ARGS)

docs: $(INSTALLED) ## build the site of the documentation into site/, strictly, its tutorials executed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

audit: $(INSTALLED) ## ask PyPI for known holes in what is installed (needs the network)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	@$(BIN)/python -m pip_audit --skip-editable

clean: ## remove .venv, caches, builds and the demo
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .coverage htmlcov build dist site demo train-demo
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(PAGE): $(PAGE_SOURCES) | viewer/node_modules
	@cd viewer && npm run --silent build

viewer/node_modules: viewer/package.json viewer/package-lock.json
	@cd viewer && npm ci --no-audit --no-fund --loglevel=error && touch node_modules

# The stamp is younger than what it was installed from, so nothing is installed twice.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing VoxSAM into .venv: this happens once and takes a few minutes."
	@$(BIN)/python -m pip install --disable-pip-version-check $(if $(CI),--quiet) -c constraints.txt -e ".[dev]"
	@$(BIN)/python -m pip install --disable-pip-version-check $(if $(CI),--quiet) -c constraints.txt --no-deps $(NNUNET)
	@touch $@

$(BIN)/python:
	@for python in $(if $(PYTHON),"$(PYTHON)",$(CANDIDATES)); do \
	    "$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	        2>/dev/null && exec "$$python" -m venv --clear .venv; \
	done; \
	echo "VoxSAM needs Python 3.11 to 3.13 with its venv module; $(if $(PYTHON),$(PYTHON) is not one,none found among $(CANDIDATES)):" \
	    "install it (Debian: also python3-venv), or name it with PYTHON=/path/to/python3.12" >&2; \
	exit 1
