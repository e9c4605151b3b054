# Everything runs in one virtual environment, $(VENV), made on first use from setup.py and constraints.txt and brought
# up to date when either changes. Python 3.11 is what constraints.txt was tested with.
#
#   make demo                     train a small ticket and show what came out
#   make test                     style, then the tests on TensorFlow, JAX and PyTorch
#   make test PYTEST_ARGS=-x      further arguments for pytest
#   make test BACKENDS=jax        on one backend only
#   make test VENV=.venv-new CONSTRAINTS=/dev/null PYTHON=python3.13    with the newest versions there are
#   make docs                     the documentation, as site/index.html (needs npm for a page that runs tickets)
#
# On Linux the registry's PyTorch brings several gigabytes of CUDA packages. Its CPU build is enough here:
#   make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= $(shell python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)
VENV ?= .venv
BACKENDS ?= tensorflow jax torch
PIP_ARGS ?=
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?= -n 2 --dist worksteal

VENV_PYTHON := $(VENV)/bin/python
INSTALL = $(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint $(CONSTRAINTS)

export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-all test-arm lint format bench docs browser figures notebooks clean distclean

help:
	@echo "make demo      train a small ticket and show what came out"
	@echo "make test      check style, run the tests on: $(BACKENDS)"
	@echo "make test-all  the same with the long tests"
	@echo "make test-arm  run converted files on an emulated 64-bit ARM (Debian)"
	@echo "make lint      check style and types only"
	@echo "make format    rewrite the sources in the project's style"
	@echo "make bench     measure times, memory and file sizes (two hours)"
	@echo "make docs      build the documentation into site/; figures, notebooks: draw and run those in it anew"
	@echo "make clean     remove caches and build products (distclean: the virtual environment too)"

demo: $(VENV)/.demo
	KERAS_BACKEND=tensorflow $(VENV_PYTHON) examples/quickstart.py

test: lint
	$(call run-tests,not slow)

test-all: lint
	$(call run-tests,slow or not slow)

# The tests compile the same small programs in many processes, most of the time that they take on JAX: it keeps them.
test test-all: export JAX_COMPILATION_CACHE_DIR = $(abspath $(VENV))/jax-programs
test test-all: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
test test-all: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES = -1

# Converted files on an emulated 64-bit ARM: Debian, and apt for qemu-user-static.
test-arm: $(VENV)/.dev
	bash tests/arm/run.sh $(VENV_PYTHON)

lint: $(VENV)/.dev
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

format: $(VENV)/.dev
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

# Two hours on two cores. Then the tables of README.md and docs/benchmarks.md are written anew.
bench: $(VENV)/.dev
	KERAS_BACKEND=tensorflow $(VENV_PYTHON) -m benchmarks.step_time --rounds 9 --variants sort bfloat16 steps_per_execution torch
	KERAS_BACKEND=tensorflow $(VENV_PYTHON) -m benchmarks.step_time --rounds 9 --jit_compile
	@set -e; for backend in jax torch; do KERAS_BACKEND=$$backend $(VENV_PYTHON) -m benchmarks.step_time --rounds 9; done
	@set -e; for backend in $(BACKENDS); do \
		KERAS_BACKEND=$$backend $(VENV_PYTHON) -m benchmarks.mask_rules; \
		KERAS_BACKEND=$$backend $(VENV_PYTHON) -m benchmarks.inference; \
	done
	KERAS_BACKEND=tensorflow $(VENV_PYTHON) -m benchmarks.memory --batch 128
	KERAS_BACKEND=tensorflow $(VENV_PYTHON) -m benchmarks.growth --rounds 3
	KERAS_BACKEND=tensorflow $(VENV_PYTHON) -m benchmarks.first_use
	KERAS_BACKEND=tensorflow $(VENV_PYTHON) -m benchmarks.first_use --cases mobilenet resnet50 --rounds 1
	@set -e; for backend in jax torch; do \
		KERAS_BACKEND=$$backend $(VENV_PYTHON) -m benchmarks.first_use --cases "first step" resnet18; \
	done
	@set -e; for benchmark in scale file_size recycling_time; do \
		KERAS_BACKEND=tensorflow $(VENV_PYTHON) -m benchmarks.$$benchmark; \
	done
	KERAS_BACKEND=tensorflow $(VENV_PYTHON) -m benchmarks.tables

# Warnings are errors, and so are public names without a docstring (docs/hooks.py, tests/test_docs.py).
docs: $(VENV)/.docs browser
	KERAS_BACKEND=tensorflow $(VENV_PYTHON) -m pytest tests/test_docs.py -k "documented or reference or navigation or table or links"
	NO_MKDOCS_2_WARNING=1 KERAS_BACKEND=tensorflow $(VENV_PYTHON) -m mkdocs build --strict

# LiteRT.js and converted tickets, for the page that runs them. Without npm the site is built without these.
browser: $(VENV)/.docs
	@if command -v npm >/dev/null; then \
		npm ci --silent --prefix docs/browser && KERAS_BACKEND=tensorflow $(VENV_PYTHON) docs/browser/build.py; \
	else \
		echo "npm is not here: the page that runs tickets in the browser stays empty"; \
	fi

figures: $(VENV)/.dev
	@set -e; for script in kernel split file_size search jackpots recycling; do \
		KERAS_BACKEND=tensorflow $(VENV_PYTHON) docs/figures/$$script.py; \
	done

notebooks: $(VENV)/.dev
	KERAS_BACKEND=tensorflow $(VENV_PYTHON) docs/notebooks/run.py

clean:
	rm -rf build dist site docs/browser/build docs/browser/node_modules *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# $(call run-tests,MARKERS): the tests with these markers on every backend, stopping at the first that fails.
define run-tests
@set -e; for backend in $(BACKENDS); do \
	markers="$(1)"; \
	if [ "$$backend" != tensorflow ]; then markers="($$markers) and not tensorflow_only"; fi; \
	echo "== tests on $$backend: $$markers"; \
	KERAS_BACKEND=$$backend $(VENV_PYTHON) -m pytest -m "$$markers" $(PYTEST_ARGS); \
done
endef

# The stamps say what the environment holds. The tests' packages include the demo's.
$(VENV)/.demo: setup.py constraints.txt | $(VENV_PYTHON)
	@echo "Installing the demo's packages into $(VENV) (some minutes the first time)"
	$(INSTALL) --editable ".[tensorflow,lce,litert,examples]"
	@touch $@

$(VENV)/.docs: setup.py constraints.txt | $(VENV_PYTHON)
	@echo "Installing the documentation's packages into $(VENV) (some minutes the first time)"
	$(INSTALL) --editable ".[tensorflow,litert,examples,docs]"
	@touch $@

$(VENV)/.dev: setup.py constraints.txt | $(VENV_PYTHON)
	@echo "Installing all backends and the tests' packages into $(VENV) (some minutes the first time)"
	$(INSTALL) --editable ".[all,examples,docs,dev]"
	@touch $@ $(VENV)/.demo $(VENV)/.docs

$(VENV_PYTHON):
	$(PYTHON) -m venv $(VENV)
