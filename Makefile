# Everything sets itself up: `make demo` and `make test` are enough on a fresh machine with Python 3.11.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
DEMO ?= demo
FRAMES ?=

export NO_ALBUMENTATIONS_UPDATE = 1
export HF_HUB_OFFLINE = 1
export MPLBACKEND = Agg
# torch's idle threads spin by default, which slows small networks on a busy machine
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test lint format bench bench-scoring bench-selection bench-camvid bench-peers bench-quality \
	bench-calibration bench-training clean

$(READY): pyproject.toml configs/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "segcurate needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint configs/constraints.txt --editable '.[demo,dev]'
	touch $@

demo: $(READY)  ## three rounds on real images, offline, in a few minutes
	$(BIN)/segcurate demo $(DEMO)

test: $(READY)  ## all tests
	$(BIN)/python -m pytest

lint: $(READY)  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: bench-scoring bench-selection  ## every benchmark that needs no data of your own

bench-scoring: $(READY)  ## FRAMES=folder of images; without it, the demo's slices
	$(BIN)/python -m tests.benchmarks.bench_scoring $(if $(FRAMES),--frames $(FRAMES))

bench-selection: $(READY)  ## a queue from a million regions
	$(BIN)/python -m tests.benchmarks.bench_selection

bench-camvid: $(READY)  ## CAMVID=folder WEIGHTS=file: two rounds from 10 % of the regions
	$(BIN)/python -m tests.benchmarks.bench_camvid --data $(CAMVID) --weights $(WEIGHTS)

.venv-peers/.ready: configs/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet -r configs/peers.txt
	touch $@

bench-peers: $(READY) .venv-peers/.ready  ## FRAMES=folder: beside Baal, torch-uncertainty and a plain loop
	$(BIN)/python -m tests.benchmarks.bench_peers $(if $(FRAMES),--frames $(FRAMES))

bench-quality: $(READY)  ## PROJECTS="folder …": every sampler and measure of trained projects
	$(BIN)/python -m tests.benchmarks.bench_quality $(foreach folder,$(PROJECTS),--project $(folder))

bench-calibration: $(READY)  ## PROJECTS="folder …": every calibrator, fitted on what one should and should not
	$(BIN)/python -m tests.benchmarks.bench_calibration $(foreach folder,$(PROJECTS),--project $(folder))

bench-training: $(READY)  ## CAMVID=folder WEIGHTS=file: what each training option does to calibration
	$(BIN)/python -m tests.benchmarks.bench_training_options --data $(CAMVID) --weights $(WEIGHTS)

clean:
	rm -rf .venv .venv-peers demo .pytest_cache .ruff_cache
