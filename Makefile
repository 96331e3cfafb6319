# Three commands do everything on a fresh machine that has Python 3.11+ and make:
#   make demo   a talking video from the example photo and voice
#   make serve  the API at http://127.0.0.1:3000, with its own queue and worker
#   make test   linters, types, tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= talking.mp4
TORCH ?= torch==2.13.0

.PHONY: demo serve test test-long chaos check clean lock bench bench-gpu bench-kernels tune-kernels bench-load quality

demo: $(VENV)/.base
	$(BIN)/infinitetalk animate examples/astronaut.png examples/en_allison.wav -o $(OUT) --seconds 15

serve: $(VENV)/.service
	$(BIN)/infinitetalk serve

# Speed and memory of the portrait engine beside a plain re-encode; MORE="--long 1200" adds a twenty-minute clip.
bench: $(VENV)/.base
	$(BIN)/python -m bench.speed $(MORE)

# Latencies of the API at 200 requests a second while a video renders, beside a bare BentoML service.
bench-load: $(VENV)/.dev
	$(BIN)/python -m bench.load

# Every sample face speaks a minute of timed speech and is measured; videos and plots go to .out/quality.
quality: $(VENV)/.dev
	$(BIN)/python -m tests.quality.table .out/quality

# The GPU's own Python where it has torch, else the virtual environment's.
bench-gpu:
	@if $(PYTHON) -c 'import torch' 2>/dev/null; then $(PYTHON) -m bench.gpu.model && $(PYTHON) -m bench.gpu.engine && $(PYTHON) -m bench.gpu.several; \
	elif [ -x $(BIN)/python ]; then $(BIN)/python -m bench.gpu.model && $(BIN)/python -m bench.gpu.engine && $(BIN)/python -m bench.gpu.several; \
	else echo 'bench-gpu skipped: no Python with torch: make PYTHON=... bench-gpu'; fi

# Every kernel beside its peers on a GPU, and every bar; without one, what the compiler makes of each for sm_80, sm_89 and sm_90.
# MORE="--save" also writes the tables under kernels/bench/results.
bench-kernels:
	@if $(PYTHON) -c 'import torch, triton' 2>/dev/null; then $(PYTHON) -m kernels.bench $(MORE); \
	elif [ -x $(BIN)/python ]; then $(BIN)/python -m kernels.bench $(MORE); \
	else echo 'bench-kernels skipped: no Python with torch and triton: make PYTHON=... bench-kernels'; fi

# Other launch settings of the kernels beside the shipped ones, on the GPU at hand; MORE="--only flash" for some.
tune-kernels:
	@if $(PYTHON) -c 'import torch, triton' 2>/dev/null; then $(PYTHON) -m kernels.bench.tune $(MORE); \
	elif [ -x $(BIN)/python ]; then $(BIN)/python -m kernels.bench.tune $(MORE); \
	else echo 'tune-kernels skipped: no Python with torch and triton: make PYTHON=... tune-kernels'; fi

# Files in the order of their folders: by their number of tests, the longest single test would come last and alone. One thread of
# torch a process: waiting threads of two processes would take the cores from each other.
test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# What takes longer than a minute, such as compiling every kernel for every architecture.
test-long:
	$(BIN)/pytest -m slow

# Killed workers, and a store that is down, slow or lossy: the long form of tests/chaos, five minutes.
chaos: $(VENV)/.dev
	$(BIN)/pytest -q -m 'slow or not slow' tests/chaos

check: $(VENV)/.dev $(VENV)/.policy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .out talking.mp4

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# pip takes only files whose hashes the lock names.
INSTALL := $(BIN)/python -m pip install -q --require-hashes -r

$(VENV)/.base: $(BIN)/python pyproject.toml requirements/base.txt
	$(INSTALL) requirements/base.txt
	$(BIN)/python -m pip install -q --no-deps -e .
	@touch $@

$(VENV)/.service: $(VENV)/.base requirements/service.txt
	$(INSTALL) requirements/service.txt
	@touch $@

# torch comes first and without a hash: which build fits depends on the machine (the CPU build is enough for the tests;
# TORCH="torch==2.13.0 --index-url ..." chooses where it comes from).
$(VENV)/.dev: $(VENV)/.service requirements/dev.txt
	$(BIN)/python -m pip install -q $(TORCH)
	$(INSTALL) requirements/dev.txt
	@touch $@

# The policy linter pins what others need newer, so it lives apart.
$(VENV)/.policy: $(BIN)/python requirements/policy.txt
	$(PYTHON) -m venv $(VENV)/policy
	$(VENV)/policy/bin/python -m pip install -q --require-hashes -r requirements/policy.txt
	@touch $@

# Packages that only a CUDA build of torch needs; it brings its own.
CUDA := cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime \
	nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 \
	nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx
COMPILE = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -q

lock: $(BIN)/python
	$(BIN)/python -m pip install -q uv==0.13.9
	$(COMPILE) -o requirements/base.txt
	$(COMPILE) --extra service -c requirements/base.txt -o requirements/service.txt
	echo "$(TORCH)" | $(COMPILE) --all-extras -c requirements/service.txt -c - $(addprefix --no-emit-package ,torch $(CUDA)) \
		-o requirements/dev.txt
	echo "$(TORCH)" | $(COMPILE) --extra service --extra gpu -c requirements/dev.txt -c - $(addprefix --no-emit-package ,torch $(CUDA)) \
		-o requirements/gpu.txt
	echo "checkov==3.3.30" | $(BIN)/uv pip compile - --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -q \
		-o requirements/policy.txt
