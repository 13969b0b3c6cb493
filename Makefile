# A bare machine needs Python 3.11+ and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help install demo test test-fast test-variants check bench torture soak clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: $(INSTALLED) ## make the virtual environment .venv

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.14" torchvision
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: install ## teach a small network the handwritten digits, with and without a teacher
	$(BIN)/attention-transfer demo

# Two tests at a time with a thread each: threads of two trainings would wait for each other. The tests of a file stay
# together, as they share what was trained for them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test: install ## run the whole test suite
	$(PYTEST) --durations=20

test-fast: install ## run the quick tests, for the daily work
	$(PYTEST) -m "not slow" --durations=20

test-variants: install ## run the tests that depend on speed on a plain processor, on busy cores, ...
	.ci/variant all

check: install ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install ## measure speed, side by side
	$(BIN)/python -m benchmarks

torture: install ## kill a run a hundred times, and compare it with one that is left alone
	$(BIN)/python -m benchmarks.torture

soak: install ## watch memory, files and children over two hundred epochs
	$(BIN)/python -m benchmarks.soak

clean: ## remove the virtual environment and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache dist
