# `make demo` and `make test` set up all they need: Python 3.11 to 3.13 and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test faults slurm-test lint venv clean results results-digits
.DELETE_ON_ERROR:

demo: .venv/.installed
	@echo '$(BIN)/lsexp sweep eps    (a small network on embedded digits, 5 smoothings x 5 seeds)'
	@$(BIN)/lsexp sweep eps
	@echo
	@echo 'The last lines are the figure and its numbers. Try next'
	@echo '(`. $(BIN)/activate` puts lsexp on your PATH):'
	@echo '  $(BIN)/lsexp sweep eps seeds=10          trains the five seeds that are missing'
	@echo '  $(BIN)/lsexp runs                        a table of what is trained'
	@echo '  $(BIN)/lsexp plot curves loss.eps=0,0.1  loss and accuracy over training'
	@echo '  $(BIN)/lsexp sweep eps recipe=mnist_mlp --dry-run   MNIST, and what it would cost'

test: .venv/.installed-dev
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Hundreds of faults where `make test` has a dozen, and their tally: 25 to 50 minutes with N=12.
N ?= 12
faults: .venv/.installed-dev
	LSEXP_FAULTS=$(N) $(BIN)/pytest -n 2 --no-loadscope-reorder --durations=0 --durations-min=60 \
	  tests/faults tests/test_words.py tests/test_numerics.py

# Sweeps as jobs of a real Slurm on this machine: some 20 minutes, most of them waiting.
slurm-test: .venv/.installed-dev
	@command -v slurmctld >/dev/null || apt-get install -y --no-install-recommends \
	  slurmctld slurmd slurm-client munge
	LSEXP_SLURM=1 $(BIN)/pytest tests/launch/test_slurm.py

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

venv: .venv/.installed-dev

# What results/ holds, set by set (SETS=mnist): from minutes to days, in as many goes as it takes.
results: .venv/.installed
	$(BIN)/python scripts/results.py $(SETS)

# All studies on the embedded digits: some 20 minutes on two cores.
results-digits:
	@$(MAKE) results SETS=digits

clean:
	rm -rf .venv build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 11) <= v[:2] <= (3, 13) and \
	  f"lsexp needs Python 3.11 to 3.13, $(PYTHON) is {v.major}.{v.minor}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install --quiet -c constraints.txt -e .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test,lint]'
	@touch .venv/.installed $@
