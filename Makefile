# `make demo` and `make test` do all of their own set-up in .venv, with pip alone.

PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help demo test lint types layers tests wheel soak bench fidelity deps clean

help:  ## What can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dpcdsl needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed  ## The main job on real input: a cell from text to a trained model, then a small search, reranked, with its report
	$(BIN)/python examples/demo.py
	$(BIN)/python examples/segment.py
	$(BIN)/python examples/search.py

test: lint types layers tests wheel  ## Everything that must pass

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/dpc fmt --check dpcdsl/zoo/*.dpc examples/*.dpc

types: .venv/installed
	$(BIN)/mypy

layers: .venv/installed
	$(BIN)/lint-imports

tests: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=20

wheel: .venv/installed
	$(BIN)/python tests/check_wheel.py

soak: .venv/installed  ## The long runs: kills, fuzzing, and searches of 28,000 trials
	$(BIN)/python -m pytest -n 2 --dist worksteal --soak -m soak
	$(BIN)/python benchmarks/run.py throughput

bench: .venv/installed  ## Measurements, and their table in docs/benchmarks.md
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/run.py

fidelity: .venv/installed  ## Whether the proxy is faithful, and what a small search finds: within an hour, goes on when cut off
	$(BIN)/python benchmarks/run.py fidelity found

deps:  ## What the system must bring for `make test` to skip nothing but the GPU (apt, as root)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends graphviz postgresql chromium; \
	else echo "not root, or no apt: install Graphviz (dot), PostgreSQL and Chromium yourself"; fi

clean:  ## Remove what was built
	rm -rf .venv build dist demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
