# `make demo` and `make test` are all the set-up there is: each makes or reuses .venv.
# What .venv is made with: the newest of these that runs, is of a version with wheels, and has venv.
FITS := import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	if $$python -c "$(FITS)" 2>/dev/null; then echo $$python; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin
DATA ?= street_scenes
# What is installed into .venv; CI adds PyTorch and JAX by EXTRAS=test,parity.
EXTRAS ?= test
# Two test files at a time: a process that builds TensorFlow graphs keeps one core busy.
PARALLEL := --numprocesses 2 --dist loadfile --durations 20
comma := ,
STAMP := $(VENV)/installed-$(subst $(comma),-,$(EXTRAS))
# `make docs NOTEBOOKS=off` shows the notebooks as they are kept, without running them.
NOTEBOOKS ?= on
SITE := docs/_build/html

.PHONY: help demo test test-slow docs web lint install constraints clean
# A .venv that could not be finished is made again.
.DELETE_ON_ERROR:

help:
	@echo "make demo               segment a street scene, then train, export and try AlignSeg on synthetic ones"
	@echo "make demo IMAGE=FILE  the same, with a street of yours"
	@echo "make demo DATA=FOLDER   the same on your own images"
	@echo "make test               lint, types, and every test that is not slow"
	@echo "make test-slow          the slow tests"
	@echo "make docs               the documentation as a site; with NOTEBOOKS=off in a minute"
	@echo "make web                LiteRT.js for the page that runs models in a browser (needs npm)"
	@echo "make constraints        the newest versions of all packages, into constraints.txt"
	@echo "make clean              remove .venv and caches, not runs/"

$(VENV)/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "error: found no Python 3.11, 3.12 or 3.13 that can make a" \
		"venv (on Debian and Ubuntu: apt install python3-venv); PYTHON=PATH names one" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# The extras are in the stamp's name: installed-test-parity is of EXTRAS=test,parity.
$(VENV)/installed-%: setup.cfg pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing into $(VENV) (about 2 GB, a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable ".[$(subst -,$(comma),$*)]"
# Its dependencies hold a `typing` that shadows Python's own, and none of them is needed here.
	@case "$*" in *test*) $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps cityscapesscripts==2.3.0;; esac
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	@$(BIN)/python -m training.demo --data "$(DATA)" $(if $(IMAGE),--image "$(IMAGE)")

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

# To be run with the oldest Python, whose newest versions are there for the others too.
constraints: $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --report $(VENV)/newest.json \
		".[test,parity,docs]"
	@echo "# Versions that the tests pass with; written by \`make constraints\`, installed by \`make\`." >$@.txt
	@$(BIN)/python -c 'import json; [print(p["name"], p["version"].split("+")[0], sep="==") \
		for p in (each["metadata"] for each in json.load(open("$(VENV)/newest.json"))["install"]) \
		if p["name"] != "alignseg_tf"]' | LC_ALL=C sort -f >>$@.txt

clean:
	rm -rf $(VENV) web/node_modules web/litert docs/_build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
