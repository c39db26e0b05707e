# Two commands for people and CI alike: `make demo` shows what pgolf does, `make test` proves that it works.
# Both make .venv and install what they need into it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-random test-lowest test-newest lint coverage mutants wheel audit fuzz figures clean

demo: .venv/.installed
	$(BIN)/pgolf demo -o demo-out

test: .venv/.installed lint
	$(BIN)/python -m pytest -n auto

# In an order that the seed decides; make prints the command, so a failure can be repeated with SEED=.
SEED ?= $(shell date +%s)
SHUFFLED = -p randomly --randomly-seed=$(SEED) --randomly-dont-reset-seed
test-random: .venv/.installed
	$(BIN)/python -m pytest -n auto $(SHUFFLED)

# The suite on other versions, in a venv of each: the lower bounds of pyproject.toml, or the newest of everything on another Python
# (make test-newest PYTHON=python3.13). Where the index has no CPU build of torch in these versions, each brings gigabytes of CUDA.
test-lowest test-newest: test-%: .venv-%/.installed
	.venv-$*/bin/python -m pytest -n auto $(SHUFFLED)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Lines of packer/ and quant/ that tests run, at least 95% of each; compiled loops are run once more as Python to be seen.
MEASURED = tests/packer tests/quant tests/code tests/common tests/fitting/test_keep.py tests/models/test_logits.py
COVERED = $(BIN)/python -m coverage run --parallel-mode -m pytest
coverage: .venv/.installed
	rm -f .coverage*
	$(COVERED) -m "not slow" $(MEASURED)
	NUMBA_DISABLE_JIT=1 $(COVERED) -k "not wrap" tests/packer/test_host.py tests/quant/test_interpreted.py
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --show-missing --skip-covered --include='pgolf/packer/*' --fail-under=95
	$(BIN)/python -m coverage report --show-missing --skip-covered --include='pgolf/quant/*' --fail-under=95

# Small faults put into packer/ one at a time: which of them does no test see? MUTANTS.md explains those that are left.
mutants: .venv/.installed
	$(BIN)/python -m mutants.run --minutes $(MINUTES)

# The wheel, installed into a fresh venv and tested there.
wheel: .venv/.installed
	$(BIN)/python -m tests.wheel

# Known holes in the pinned versions; needs the advisories of PyPI.
audit: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[audit]'
	$(BIN)/python -m pip_audit --strict -r constraints.txt --no-deps --disable-pip

# Damaged inputs by the hundred thousand, then 300 kills; MINUTES is the most that one target takes. GUIDED=1 follows coverage instead.
INPUTS ?= 10000
MINUTES ?= 20
fuzz: .venv/.installed
	$(if $(GUIDED),$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]')
	$(BIN)/python -m fuzz.run --inputs $(INPUTS) --minutes $(MINUTES) $(if $(GUIDED),--guided)
	$(BIN)/python -m fuzz.kills
	$(BIN)/python -m fuzz.kills_of_ranks

# Which measured figures are older than the code that they measure.
figures:
	$(PYTHON) benchmarks/figures.py

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pgolf needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

.venv-lowest/.installed: PINS = -c constraints-lowest.txt
.venv-%/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check $(PINS) -e '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-newest demo-out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
