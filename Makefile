# Every target makes .venv when it is missing, and installs again when a dependency changes. PYTHON names the interpreter (3.11 or later).
PYTHON ?= python3
BIN := .venv/bin
# Wheels are large and the index can be slow: retry rather than fail.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 5 --constraint constraints.txt

.PHONY: demo test test-long bench docs check clean
.DEFAULT_GOAL := test

demo: .venv/installed-demo
	$(BIN)/sash demo --html report.html

test: .venv/installed-dev
	bash .ci/browser
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-long: .venv/installed-dev
	bash .ci/browser
	$(BIN)/python -m pytest -m long
	$(MAKE) --no-print-directory docs

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/installed-dev
	for name in forecast time fit separable loss tiled ops arrays pca; do $(BIN)/python bench/$$name.py || exit 1; done

docs: .venv/installed-dev
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf docs/_build docs/gallery docs/sg_execution_times.rst build report.html

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed-demo: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing sash for the demo (torch is large: a few minutes)."
	$(INSTALL) --editable '.[report,demo]'
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing sash and its development tools (a few minutes)."
	$(INSTALL) --editable '.[report,demo,dev]'
	@touch $@ .venv/installed-demo
