# `make demo` and `make test` set up all they need: Python 3.11 to 3.13 and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint venv clean
.DELETE_ON_ERROR:

demo: .venv/.installed
	@echo '$(BIN)/lsexp train loss.eps=0.1    (a small network on embedded digits, labels smoothed by 0.1)'
	@$(BIN)/lsexp train loss.eps=0.1
	@echo
	@echo 'The folder above holds metrics.json, history.csv, weights and logits. Try next'
	@echo '(`. $(BIN)/activate` puts lsexp on your PATH):'
	@echo '  $(BIN)/lsexp train loss.eps=0            hard labels, the same draws: compare the ECE'
	@echo '  $(BIN)/lsexp runs                        a table of what is trained'
	@echo '  $(BIN)/lsexp plot curves                 loss and accuracy over training'
	@echo '  $(BIN)/lsexp train recipe=mnist_mlp      MNIST, downloaded the first time'

test: .venv/.installed-dev
	$(BIN)/pytest -n 2 --dist loadfile

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

venv: .venv/.installed-dev

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
