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
# `make docs NOTEBOOKS=off` shows the notebooks as they are kept, without running them.
NOTEBOOKS ?= on
SITE := docs/_build/html

.PHONY: help demo test test-slow docs web lint install clean

help:
	@echo "make demo               segment a street, then train, export and try AlignSeg on drawn ones"
	@echo "make demo PICTURE=FILE  the same, with a street of yours"
	@echo "make demo DATA=FOLDER   the same on your own pictures"
	@echo "make test               lint, types, and every test that is not slow"
	@echo "make test-slow          the slow tests"
	@echo "make docs               the documentation as a site; with NOTEBOOKS=off in a minute"
	@echo "make web                LiteRT.js for the page that runs models in a browser (needs npm)"
	@echo "make clean              remove .venv and caches, not runs/"

# The extras are in the stamp's name: installed-test-parity is of EXTRAS=test,parity.
$(VENV)/installed-%: setup.cfg pyproject.toml
	@echo "Installing into $(VENV) (about 2 GB, a few minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--editable ".[$(subst -,$(comma),$*)]"
# Its dependencies hold a `typing` that shadows Python's own, and none of them is needed here.
	@case "$*" in *test*) $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps cityscapesscripts==2.3.0;; esac
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	@$(BIN)/python -m training.demo --data "$(DATA)" $(if $(PICTURE),--picture "$(PICTURE)")

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m slow

# Warnings are errors, a link that leads nowhere among them.
docs: $(VENV)/installed-docs
	NOTEBOOKS=$(NOTEBOOKS) $(BIN)/python -m sphinx -b html -n -W --keep-going -q \
		-d docs/_build/doctrees docs $(SITE)
	@echo "$(SITE)/index.html"

# The lock file says which version, by its content.
web: web/litert/index.js

web/litert/index.js: web/package-lock.json web/build.mjs
	cd web && npm ci --no-audit --no-fund --loglevel=error && node build.mjs
	@touch $@

clean:
	rm -rf $(VENV) web/node_modules web/litert docs/_build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
