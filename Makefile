# `make` alone prints the targets. `make book` and `make test` need Python 3.11 to 3.13 and make, nothing else.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install book test clean
.PHONY: book-beside-tests tests

PYTHON ?= python3
# Two workers of one thread each: on two cores three are slower.
# tests/conftest.py says which tests stay together, and which come first.
PYTEST_ARGS ?= -q -n 2 --dist loadscope --no-loadscope-reorder
BIN := .venv/bin
# Many tests start Python anew, so it keeps what it compiles.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 METANB_STORE='$(CURDIR)/.live/test' \
    METANB_BOOK_BEING_BUILT='$(BEING_BUILT)' $(BIN)/python -m pytest $(PYTEST_ARGS) \
    --nbval --nbval-sanitize-with tests/nbval.cfg --doctest-modules
INSTALLED := .venv/.installed
INDEX := _build/html/index.html
LIVE := book/on-this-machine.ipynb
BEING_BUILT := $(CURDIR)/.live/book-being-built

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED) ## make .venv and install metanb with all it needs into it (torch: some GB)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit(f"Python {v[0]}.{v[1]} found, 3.11 to 3.13 needed: name one, as in  make PYTHON=python3.12")'
	@echo "Installing into .venv: a few minutes, torch is large"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[book,test]'
	@touch $@

# The page "On this machine": one notebook, trained live into a store of its own, so that no earlier run is read instead.
# One thread: these networks are too small for two.
$(LIVE): $(INSTALLED) notebooks/2-flatness.ipynb $(shell find metanb -name '*.py')
	@rm -rf .live/runs
	OMP_NUM_THREADS=1 METANB_STORE='$(CURDIR)/.live/runs' $(BIN)/metanb run notebooks/2-flatness.ipynb \
	    -p dataset glyphs -p scale smoke -p seeds '[0, 1, 2]' -o .live/2-flatness.ipynb
	@mv .live/2-flatness.ipynb $@

# The scripts of a virtual environment hold its path, so it does not survive a move.
ifneq ($(and $(wildcard $(BIN)/pip),$(filter install book test,$(MAKECMDGOALS))),)
ifeq ($(shell grep -cF '$(CURDIR)/$(BIN)/' $(BIN)/pip),0)
$(error .venv was made in another folder: run  make clean  first)
endif
endif

book: $(INSTALLED) $(LIVE) ## build the book strictly: _build/html/index.html
	@rm -f $(INDEX)
	$(BIN)/jupyter-book build . --all -W -n --keep-going
	@test -s $(INDEX) || { echo "$(INDEX) is missing although the build reported success" >&2; exit 1; }
	@echo "The book: $(CURDIR)/$(INDEX)"

# The build takes one core; meanwhile the other tests run. Those of the book come last, and wait for it.
test: $(INSTALLED) ## make book, then run all tests, the notebooks' outputs among them
	@rm -rf .live/test
	@mkdir -p .live
	@touch '$(BEING_BUILT)'
	@$(MAKE) --no-print-directory -j2 book-beside-tests tests

book-beside-tests: $(INSTALLED)
	@trap "rm -f '$(BEING_BUILT)'" EXIT; $(MAKE) --no-print-directory book

tests: $(INSTALLED)
	@$(PYTEST) metanb tests notebooks

clean: ## remove what make made: the book, its live page and its runs, .venv
	rm -rf _build .live $(LIVE) .venv
