# Where MNIST lies or is downloaded to; without it everything falls back to scikit-learn's bundled digits.
DATA_DIR ?= data
PYTHON ?= python3
BIN := .venv/bin

.PHONY: figures test notebooks tables benchmarks

figures: .venv/ready
	$(BIN)/python train_moons.py
	$(BIN)/python train_glow_mnist.py --figure-only --data-dir $(DATA_DIR)
	$(BIN)/python inpaint.py --data-dir $(DATA_DIR)

test: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 DATA_DIR=$(abspath $(DATA_DIR)) $(BIN)/python -m pytest -n auto --dist worksteal
	OMP_NUM_THREADS=1 DATA_DIR=$(abspath $(DATA_DIR)) $(BIN)/python -m pytest -n auto --dist worksteal --nbmake --nbmake-timeout=240 notebooks

# Runs the notebooks and stores what they show.
notebooks: .venv/ready-dev
	cd notebooks && DATA_DIR=$(abspath $(DATA_DIR)) ../$(BIN)/jupyter nbconvert --to notebook --inplace --execute *.ipynb

# Writes the README's tables from benchmarks/results.
tables: .venv/ready
	$(BIN)/python benchmarks/tables.py

# Measures ours against the peers; nothing else should run meanwhile.
benchmarks: .venv/ready-dev
	$(BIN)/python benchmarks/moons_peers.py
	$(BIN)/python benchmarks/glow_speed.py
	$(BIN)/python benchmarks/glow_bits.py --data-dir $(DATA_DIR)
	$(BIN)/python benchmarks/inpainting_table.py --data-dir $(DATA_DIR) --images 32
	$(BIN)/python benchmarks/posterior_check.py --data-dir $(DATA_DIR)

.venv/ready: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/ready-dev: requirements-dev.txt .venv/ready
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@
