# One command, some speeds. No logic here: each line is a program that can be run by hand.
PYTHON ?= $(shell .ci/python)
BIN := .venv/bin

GUEST := $(wildcard src/mamushka/guest/*.[ch] src/mamushka/guest/build.py)

.PHONY: setup run check test lab lab-long bench bench-kvm fuzz clean

setup: .venv/.installed .venv/.guest

.venv/.installed: pyproject.toml
	"$(PYTHON)" -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	$(BIN)/python -X no_debug_ranges -m mamushka.startup
	touch $@

.venv/.tested: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

.venv/.guest: .venv/.installed $(GUEST)
	$(BIN)/python src/mamushka/guest/build.py
	touch $@

run: setup
	$(BIN)/mamushka run --rm --debug host uname -a

check: .venv/.tested
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/unit

test: .venv/.tested .venv/.guest
	tests/peers.sh
	$(BIN)/pytest tests

lab: .venv/.tested .venv/.guest
	tests/peers.sh
	$(BIN)/python -m tests.lab

lab-long: .venv/.tested .venv/.guest
	tests/peers.sh
	$(BIN)/python -m tests.lab --long

bench: .venv/.tested .venv/.guest
	$(BIN)/python -m bench

bench-kvm: .venv/.tested .venv/.guest
	$(BIN)/python -m bench.kvm

fuzz: .venv/.tested .venv/.guest
	$(BIN)/python -m tests.fuzz

clean:
	rm -rf .venv
