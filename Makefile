# Three commands do everything on a fresh machine that has Python 3.11+ and make:
#   make demo   a talking video from the example photo and voice
#   make serve  the API at http://127.0.0.1:3000, with its own queue and worker
#   make test   linters, types, tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= talking.mp4

.PHONY: demo serve test check clean bench bench-gpu quality

demo: $(VENV)/.base
	$(BIN)/infinitetalk animate examples/astronaut.png examples/en_allison.wav -o $(OUT) --seconds 15

serve: $(VENV)/.service
	$(BIN)/infinitetalk serve

# Speed and memory of the portrait engine beside a plain re-encode; MORE="--long 1200" adds a twenty-minute clip.
bench: $(VENV)/.base
	$(BIN)/python -m bench.speed $(MORE)

# Every sample face speaks a minute of timed speech and is measured; videos and plots go to .out/quality.
quality: $(VENV)/.quality
	$(BIN)/python -m tests.quality.table .out/quality

# The GPU's own Python where it has torch, else the virtual environment's.
bench-gpu:
	@if $(PYTHON) -c 'import torch' 2>/dev/null; then $(PYTHON) -m bench.gpu.model; \
	elif [ -x $(BIN)/python ]; then $(BIN)/python -m bench.gpu.model; \
	else echo 'bench-gpu skipped: no Python with torch: make PYTHON=... bench-gpu'; fi

test: check
	$(BIN)/pytest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .out talking.mp4

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(BIN)/python pyproject.toml requirements/base.txt
	$(BIN)/python -m pip install -q --require-hashes -r requirements/base.txt
	$(BIN)/python -m pip install -q --no-deps -e .
	@touch $@

$(VENV)/.service: $(VENV)/.base
	$(BIN)/python -m pip install -q -e '.[service]'
	@touch $@

$(VENV)/.quality: $(VENV)/.base
	$(BIN)/python -m pip install -q -e '.[quality]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base requirements/dev.txt
	$(BIN)/python -m pip install -q -r requirements/dev.txt
	@touch $@
