# Every target does its own set-up: a virtual environment in .venv with the pinned packages.
PYTHON ?= python3
PY := .venv/bin/python
WORKDIR ?= workdirs/digits

.PHONY: setup parity train test lint torture clean

setup: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; found " + sys.version.split()[0] + ". Set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch .venv/installed

# The libraries that the tests compare with.
parity: .venv/parity

.venv/parity: .venv/installed tests/requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch .venv/parity

train: setup
	$(PY) -m vit_jax.main --config=configs/digits.py --workdir=$(WORKDIR)

lint: parity
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: lint parity
	$(PY) -m pytest -n 2 --dist loadgroup -m "not torture"

torture: parity
	$(PY) -m pytest -m torture -s

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
