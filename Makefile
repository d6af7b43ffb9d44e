# Where MNIST lies or is downloaded to. Without it everything falls back to scikit-learn's digits.
DATA_DIR ?= data
PYTHON ?= python3
BIN := .venv/bin

# Where LOCKED=1 is given, the exact versions of the published figures are installed (Python 3.11.5+).
REQUIREMENTS := $(if $(LOCKED),--require-hashes -r requirements.lock,-r requirements.txt)
OLDEST := .venv-oldest/bin

.PHONY: figures test test-browser test-oldest notebooks tables ship benchmarks torture lock audit

figures: .venv/ready
	$(BIN)/python train_moons.py
	$(BIN)/python train_moons.py --modes 2
	$(BIN)/python -m benchmarks.moons_failures
	$(BIN)/python -m benchmarks.draw_gaps
	$(BIN)/python train_glow_mnist.py --figure-only --data-dir $(DATA_DIR)
	$(BIN)/python inpaint.py --data-dir $(DATA_DIR)

# One thread for each of the test processes: they would wait for each other otherwise.
test: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 DATA_DIR=$(abspath $(DATA_DIR)) $(BIN)/python -m pytest -n auto --dist worksteal

# The notebooks' widgets in a real browser: Chromium and its driver, from the system's packages.
test-browser: .venv/ready-dev
	$(BIN)/python -m pip install --quiet 'selenium>=4.20'
	DATA_DIR=$(abspath $(DATA_DIR)) $(BIN)/python -m pytest tests/browser.py

# The tests on the oldest versions that requirements.txt allows.
test-oldest:
	test -x $(OLDEST)/python || $(PYTHON) -m venv .venv-oldest
	sed -E 's/>=([0-9.]+)[^ ]*/==\1/' requirements.txt > .venv-oldest/oldest.txt
	$(OLDEST)/python -m pip install --quiet -r .venv-oldest/oldest.txt -r requirements-dev.txt
	OMP_NUM_THREADS=1 DATA_DIR=$(abspath $(DATA_DIR)) $(OLDEST)/python -m pytest -n auto --dist worksteal

# Runs the notebooks and stores what they show.
notebooks: .venv/ready-dev
	cd notebooks && DATA_DIR=$(abspath $(DATA_DIR)) ../$(BIN)/jupyter nbconvert --to notebook --inplace --execute *.ipynb

# Writes the tables of README.md and benchmarks/README.md from benchmarks/results.
tables: .venv/ready
	$(BIN)/python -m benchmarks.tables

# Publishes weights that a run made here: `make ship NAME=glow_mnist`. Nothing else writes there.
# Then the notebooks, figures and tables that show them: `make figures notebooks tables`.
ship:
	test -f "checkpoints/$(NAME).pt"
	cp "checkpoints/$(NAME).pt" "checkpoints/shipped/$(NAME).pt"

# Measures ours against the peers, for hours. Nothing else should run meanwhile.
benchmarks: .venv/ready-dev
	$(BIN)/python -m benchmarks.moons_peers
	$(BIN)/python -m benchmarks.moons_steps
	$(BIN)/python -m benchmarks.table_density
	$(BIN)/python -m benchmarks.table_gaps
	$(BIN)/python -m benchmarks.glow_speed
	$(BIN)/python -m benchmarks.glow_bits --data-dir $(DATA_DIR)
	$(BIN)/python -m benchmarks.inpainting_table --data-dir $(DATA_DIR)
	$(BIN)/python -m benchmarks.digit_calibration --data-dir $(DATA_DIR)
	$(BIN)/python -m benchmarks.inpainting_calibration
	$(BIN)/python -m benchmarks.last_stage --data-dir $(DATA_DIR)
	$(BIN)/python -m benchmarks.known_answer --data-dir $(DATA_DIR)
	$(BIN)/python -m benchmarks.processes --data-dir $(DATA_DIR)

# Kills, stops and starves the scripts, and damages their files, some 2,500 times.
torture: .venv/ready-dev
	$(BIN)/python -m benchmarks.torture

# Writes requirements.lock anew; the versions that are in it stay where they can.
lock: .venv/ready-dev
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile requirements.txt --universal --python-version 3.11.5 --generate-hashes \
	    --no-annotate --no-header --quiet -o requirements.lock

# Asks a database on the web for known weaknesses of the locked versions.
audit: .venv/ready-dev
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --disable-pip -r requirements.lock

.venv/ready: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(REQUIREMENTS)
	touch $@

.venv/ready-dev: requirements-dev.txt .venv/ready
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@
