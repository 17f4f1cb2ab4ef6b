# make demo and make test each work alone on a machine with python3 (3.10 or newer), make and a
# package index. They share .venv, which the first of them makes.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Holds the text of the files it depends on, so that a fresh checkout's new dates do not count.
STAMP := $(VENV)/tdos_d2-installed
PIP_INSTALL := $(PY) -m pip --disable-pip-version-check install -q -e '.[test]'

.PHONY: help demo test lint install clean

help:
	@echo "make demo     train on generated scenes, evaluate, draw output/demo/contact_sheet.png"
	@echo "make test     ruff and pytest"
	@echo "make lint     ruff only"
	@echo "make install  $(VENV) with tdos_d2, what it needs and Detectron2 (the others do this too)"
	@echo "make clean    remove $(VENV), caches and build folders; output/ stays"
	@echo "Another Python than python3: make demo PYTHON=/path/to/python"

demo: $(STAMP)
	@$(PY) tools/demo.py

test: lint
	@$(PY) -m pytest -n logical --maxprocesses 4 --dist worksteal

lint: $(STAMP)
	@$(PY) -m ruff check

install: $(STAMP)

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -prune -exec rm -rf {} +

# The first pip call succeeds without a network where everything needed is already in .venv.
$(STAMP): setup.py pyproject.toml tools/install_detectron2.py | $(VENV)/bin/python
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null || \
	  { echo "error: $(VENV) has no pip: remove it with 'make clean'" >&2; exit 1; }
	@if ! cat $^ | cmp -s - $@; then \
	  $(PY) -m pip --isolated --disable-pip-version-check install -q --no-index \
	    --no-build-isolation -e '.[test]' >/dev/null 2>&1 || { \
	    echo "Installing tdos_d2 and its dependencies into $(VENV): once, some minutes, about 6 GB"; \
	    $(PIP_INSTALL) || { \
	      echo "error: the dependencies were not installed (pip's reason is above; often it is the" \
	        "network): run make again to go on" >&2; exit 1; }; }; \
	  $(PY) tools/install_detectron2.py || exit 1; \
	fi
	@cat $^ > $@

$(VENV)/bin/python:
	@fail() { echo "error: $$1" >&2; exit 1; }; \
	[ ! -e $(VENV) ] || fail "$(VENV) has no working python: remove it with 'make clean'"; \
	$(PYTHON) -c '' 2>/dev/null || \
	  fail "no $(PYTHON) that runs: install Python 3.10 or newer, or name one with PYTHON=..."; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  fail "$(PYTHON) is too old: Python 3.10 or newer is needed, name one with PYTHON=..."; \
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  fail "$(PYTHON) cannot make virtual environments: install the package python3-venv"; \
	trap 'rm -rf $(VENV); exit 1' INT TERM HUP; \
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); fail "$(PYTHON) -m venv $(VENV) failed"; }
