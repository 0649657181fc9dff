# Everything sets itself up: `make demo` and `make test` are enough on a fresh machine with Python 3.11.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
DEMO ?= demo
FRAMES ?=
ROWS ?=
CASES ?=
ARGS ?=

export NO_ALBUMENTATIONS_UPDATE = 1
export HF_HUB_OFFLINE = 1
export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export RAY_USAGE_STATS_ENABLED = 0
export MPLBACKEND = Agg
# torch's idle threads spin by default, which slows small networks on a busy machine
export OMP_WAIT_POLICY = PASSIVE

REAL = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --override-ini addopts="--strict-markers --strict-config -ra" --timeout 1500

.PHONY: demo test test-real test-ray test-s3 test-prefect test-prefect-ui test-postgresql test-kill \
	test-label-studio test-datumaro fuzz lint format bench bench-labeling bench-scoring bench-large bench-selection bench-db bench-scale bench-flow bench-camvid bench-rounds bench-simulate bench-peers bench-quality \
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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-real: test-postgresql test-s3 test-ray test-kill test-prefect test-prefect-ui test-label-studio test-datumaro  ## with real servers, killed

test-postgresql: $(READY)  ## a PostgreSQL that restarts while a run is written; pgbouncer before one
	$(REAL) tests/real/test_postgresql_restart.py tests/real/test_pgbouncer.py

test-s3: $(READY)  ## images in a bucket
	$(REAL) tests/real/test_s3.py

test-ray: $(READY)  ## a Ray cluster of two workers, one of them killed
	$(REAL) tests/real/test_ray.py tests/real/test_workers.py

test-prefect: $(READY)  ## a Prefect server and a worker, killed and started again; alerts
	$(REAL) tests/real/test_prefect_server.py tests/real/test_two_projects.py tests/real/test_prefect_alerts.py tests/real/test_foreign_modules.py tests/real/test_cancelling.py

test-prefect-ui: $(READY)  ## what a person sees, in headless Chromium
	$(REAL) tests/real/test_prefect_ui.py tests/real/test_private_server.py

test-kill: $(READY)  ## nights and retrainings killed at 25 moments each
	$(REAL) tests/real/kill

# Label Studio and Datumaro pin older versions of numpy and OpenCV: each has an environment of its own
.venv-label-studio/.ready: configs/label-studio.txt
	$(PYTHON) -m venv .venv-label-studio
	.venv-label-studio/bin/python -m pip install --quiet -r configs/label-studio.txt
	touch $@

.venv-datumaro/.ready: configs/datumaro.txt
	$(PYTHON) -m venv .venv-datumaro
	.venv-datumaro/bin/python -m pip install --quiet -r configs/datumaro.txt
	touch $@

test-label-studio: $(READY) .venv-label-studio/.ready  ## a queue to a real Label Studio, its pages, and the labels back
	$(REAL) tests/real/test_label_studio.py tests/real/test_label_studio_rounds.py

test-datumaro: $(READY) .venv-datumaro/.ready  ## our files read by Datumaro, and its files by us
	$(REAL) tests/real/test_datumaro.py

fuzz: $(READY)  ## CASES=100000: what strangers may send, in bounded time and memory
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(if $(CASES),--cases $(CASES))

lint: $(READY)  ## style, types, and which package may import which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: bench-scoring bench-selection  ## every benchmark that needs no data of your own

bench-scoring: $(READY)  ## FRAMES=folder of images; without it, the demo's slices
	$(BIN)/python -m benchmarks.bench_scoring $(if $(FRAMES),--frames $(FRAMES))

bench-large: $(READY)  ## ARGS="--megapixels 24 196 --kinds jpeg tiled": memory and time of large photographs
	$(BIN)/python -m benchmarks.bench_large $(ARGS)

bench-selection: $(READY)  ## a queue from a million regions
	$(BIN)/python -m benchmarks.bench_selection

bench-db: $(READY)  ## ROWS=10000000: the score tables on SQLite and on PostgreSQL
	$(BIN)/python -m benchmarks.bench_db $(if $(ROWS),--rows $(ROWS))

bench-scale: $(READY)  ## how cost grows from a thousand images to a hundred thousand
	$(BIN)/python -m benchmarks.bench_scale

bench-labeling: $(READY)  ## 2 000 tasks out to each labeling tool, and back
	$(BIN)/python -m benchmarks.bench_labeling

bench-flow: $(READY)  ## what Prefect adds to a scoring run
	$(BIN)/python -m benchmarks.bench_flow

bench-camvid: $(READY)  ## CAMVID=folder WEIGHTS=file: two rounds from 10 % of the regions
	$(BIN)/python -m benchmarks.bench_camvid --data $(CAMVID) --weights $(WEIGHTS)

bench-rounds: $(READY)  ## CAMVID=folder WEIGHTS=file: the CPU time of a round with a frozen encoder
	$(BIN)/python -m benchmarks.bench_rounds --data $(CAMVID) --weights $(WEIGHTS) $(ARGS)

bench-simulate: $(READY)  ## CAMVID=folder WEIGHTS=file: does selecting beat drawing at random? hours, resumable
	$(BIN)/python -m benchmarks.bench_simulate --data $(CAMVID) --weights $(WEIGHTS) $(ARGS)

.venv-peers/.ready: configs/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet -r configs/peers.txt
	touch $@

bench-peers: $(READY) .venv-peers/.ready  ## FRAMES=folder: beside Baal, torch-uncertainty and a plain loop
	$(BIN)/python -m benchmarks.bench_peers $(if $(FRAMES),--frames $(FRAMES))

bench-quality: $(READY)  ## PROJECTS="folder …": every sampler and measure of trained projects
	$(BIN)/python -m benchmarks.bench_quality $(foreach folder,$(PROJECTS),--project $(folder))

bench-calibration: $(READY)  ## PROJECTS="folder …": every calibrator, fitted on what one should and should not
	$(BIN)/python -m benchmarks.bench_calibration $(foreach folder,$(PROJECTS),--project $(folder))

bench-training: $(READY)  ## CAMVID=folder WEIGHTS=file: what each training option does to calibration
	$(BIN)/python -m benchmarks.bench_training_options --data $(CAMVID) --weights $(WEIGHTS)

clean:
	rm -rf .venv .venv-peers .venv-label-studio .venv-datumaro demo .pytest_cache .ruff_cache
