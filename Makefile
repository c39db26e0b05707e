# Two commands for people and CI alike: `make demo` shows what pgolf does, `make test` proves that it works.
# Both make .venv and install what they need into it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint fuzz clean

demo: .venv/.installed
	$(BIN)/pgolf demo -o demo-out

test: .venv/.installed lint
	$(BIN)/python -m pytest -n auto

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Damaged inputs by the hundred thousand, then 200 kills; MINUTES is the most that one target takes. GUIDED=1 follows coverage instead.
INPUTS ?= 10000
MINUTES ?= 20
fuzz: .venv/.installed
	$(if $(GUIDED),$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]')
	$(BIN)/python -m fuzz.run --inputs $(INPUTS) --minutes $(MINUTES) $(if $(GUIDED),--guided)
	$(BIN)/python -m fuzz.kills

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pgolf needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv demo-out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
