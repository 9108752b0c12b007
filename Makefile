# Every target does its own set-up: a virtual environment in .venv with the pinned packages.
PYTHON ?= python3
PY := .venv/bin/python
NEWEST ?= python3.12
WORKDIR ?= workdirs/digits

.PHONY: setup parity train test newest lint torture bench docs notebooks clean

setup: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; found " + sys.version.split()[0] + ". Set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch .venv/installed

# The libraries that the tests compare with, and what builds the docs.
parity: .venv/parity

.venv/parity: .venv/installed tests/requirements.txt docs/requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r tests/requirements.txt
	@touch .venv/parity

train: setup
	$(PY) -m vit_jax.main --config=configs/digits.py --workdir=$(WORKDIR)

lint: parity
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Three processes for two cores, since tests wait a tenth of their time.
test: lint parity
	$(PY) -m pytest -n 3 --dist loadgroup -m "not torture"

# A part of the suite with the newest versions of all packages, in an environment of its own.
newest:
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -e . "pytest<9.2" pytest-xdist beartype
	.venv-newest/bin/python -c 'import sys, jax; print("Python", sys.version.split()[0], "and jax", jax.__version__)'
	.venv-newest/bin/python -m pytest -n 2 --dist loadgroup -m "not torture" tests/train/test_fit.py tests/models/test_stages.py

torture: parity
	$(PY) -m pytest -m torture -s

# Every speed as a ratio to timm and, with AGAINST=COMMIT, to another commit. Needs a quiet machine.
bench: parity
	$(PY) experiments/speed_202611/bench.py $(if $(AGAINST),--against=$(AGAINST))

# The site, in build/site; a warning is an error.
docs: .venv/docs
	.venv/bin/zensical build --clean --strict

.venv/docs: .venv/installed docs/requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch .venv/docs

# Runs the notebooks offline and writes their outputs back into them.
notebooks: .venv/notebooks
	HF_HUB_OFFLINE=1 .venv/bin/jupyter-execute --inplace docs/notebooks/*.ipynb

.venv/notebooks: .venv/installed docs/notebooks/requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r docs/notebooks/requirements.txt
	@touch .venv/notebooks

clean:
	rm -rf build .venv .venv-newest .pytest_cache .mypy_cache .ruff_cache *.egg-info
