# make demo | scaling-demo | test | check | docs | bench | format | clean. Each sets up its virtual environment by itself, once.
#   make test TESTS=tests/model          a part of the suite
#   make test PYTHON=python3.12          another Python, in an environment of its own (.venv-python3.12); a path will do
SHELL := /bin/bash
DEFAULT_PYTHON := $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
PYTHON ?= $(DEFAULT_PYTHON)
VENV ?= $(if $(filter $(PYTHON),$(DEFAULT_PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
READY := $(VENV)/.ready-$(shell cat pyproject.toml constraints/cpu.txt constraints/install.sh | sha256sum | cut -c 1-16)
TESTS ?= tests

# The environment's programs come first. Nothing is fetched at run time.
export PATH := $(abspath $(VENV))/bin:$(PATH)
export HF_HUB_OFFLINE := 1
export PYTHONUNBUFFERED := 1
export WANDB_MODE ?= offline

.PHONY: demo scaling-demo test check docs bench format clean setup
.DEFAULT_GOAL := demo

demo: $(READY)
	@python -m trainer.demo

# Needs what `make demo` leaves, and makes it where it is not there. Again after Ctrl-C, it goes on; again after its end, it
# says what stands. Shards of an older version are refused by the sweep: `rm -r runs/demo` then has them made again.
scaling-demo: $(READY)
	@test -f runs/demo/latents/manifest.parquet || python -m trainer.demo
	@python -m scaling.sweep sweep=demo || { code=$$?; test $$code != 2 || \
		echo "Shards that do not fit are made again by: rm -r runs/demo && make scaling-demo" >&2; exit $$code; }
	@python -m scaling.fit --cells runs/sweeps/demo/cells.jsonl --out runs/sweeps/demo/fit
	@python -m scaling.bet sweep=demo; bet=$$?; python -m scaling.report runs/sweeps/demo && exit $$bet

docs: $(READY)
	@sphinx-build -W -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

test: $(READY)
	@bash tests/slurm/install.sh
	@python -m pytest $(TESTS)

check: $(READY)
	ruff format --check .
	ruff check .
	mypy
	lint-imports

bench: $(READY)
	@python -m bench.dit
	@CUDA_VISIBLE_DEVICES= python -m bench.pipeline
	@CUDA_VISIBLE_DEVICES= python -m bench.overhead
	@bash bench/peers.sh .venv-peers $(VENV)/bin/python
	@CUDA_VISIBLE_DEVICES= python -m bench.data

format: $(READY)
	ruff format .
	ruff check --fix .

setup: $(READY)

$(READY):
	@bash constraints/install.sh $(VENV) $(PYTHON) $@

# Environments and caches; runs/ and downloads (.cache/) stay.
clean:
	rm -rf .venv .venv-* *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
