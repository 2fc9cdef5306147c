# make run    a fresh machine to a finished run: environment, planted data, training, report
# make test   a fresh machine to a passed test-suite
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/quickstart
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run test test-slow lint format clean help

help:
	@sed -n 's/^# //p' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

run: $(INSTALLED)
	$(BIN)/python -m data_pipelines.build --dataset=synthetic --out=$(RUN)/data
	$(BIN)/python -m deres_jax.main --config=experiments/quickstart_lr.py \
	  --workdir=$(RUN)/lr --config.data.path=$(RUN)/data
	$(BIN)/python -m deres_jax.main --config=experiments/quickstart.py \
	  --workdir=$(RUN)/deres --config.data.path=$(RUN)/data
	$(BIN)/python -m deres_jax.report --workdir=$(RUN)/deres --baseline=$(RUN)/lr \
	  --out=$(RUN)/report.html

# make test-slow   what is too long for the suite
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# make lint   ruff; make format rewrites
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf runs build *.egg-info .pytest_cache .ruff_cache
