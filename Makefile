# `make demo` and `make test` are all the set-up there is: each makes or reuses .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DATA ?= street_scenes
# What is installed into .venv; CI adds PyTorch and JAX by EXTRAS=test,parity.
EXTRAS ?= test
# Two test files at a time: a process that builds TensorFlow graphs keeps one core busy.
PARALLEL := --numprocesses 2 --dist loadfile
comma := ,
STAMP := $(VENV)/installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: help demo test test-slow lint install clean

help:
	@echo "make demo               train, export and try AlignSeg on drawn street scenes"
	@echo "make demo DATA=FOLDER   the same on your own pictures"
	@echo "make test               lint, types, and every test that is not slow"
	@echo "make test-slow          the slow tests"
	@echo "make clean              remove .venv and caches, not runs/"

$(STAMP): setup.cfg pyproject.toml
	@echo "Installing into $(VENV) (about 2 GB, a few minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]"
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	@$(BIN)/python -m training.demo --data "$(DATA)"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m slow

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
