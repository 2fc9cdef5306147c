# make run    from a fresh machine to a finished run: environment, planted data, training, report
# make test   from a fresh machine to a passed test suite
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/quickstart
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run tutorial claims pod-local pod-tpu pod-gke pod-slurm criteo-sample test test-slow fuzz faults soak lock audit bench bench-data bench-scale docs lint format clean help

help:
	@sed -n 's/^# //p' $(MAKEFILE_LIST)

# LOCK=requirements.lock installs exactly the pinned versions, checked by hash (Python 3.11, Linux x86-64)
LOCK ?=
$(INSTALLED): pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(if $(LOCK),$(BIN)/python -m pip install -q --require-hashes -r $(LOCK))
	$(BIN)/python -m pip install -q $(if $(LOCK),--no-deps --no-build-isolation) -e '.[dev]'
	touch $@

run: $(INSTALLED)
	$(BIN)/python -m data_pipelines.build --dataset=synthetic --out=$(RUN)/data
	$(BIN)/python -m deres_jax.main --config=experiments/quickstart_lr.py \
	  --workdir=$(RUN)/lr --config.data.path=$(RUN)/data
	$(BIN)/python -m deres_jax.main --config=experiments/quickstart.py \
	  --workdir=$(RUN)/deres --config.data.path=$(RUN)/data
	$(BIN)/python -m deres_jax.report --workdir=$(RUN)/deres --baseline=$(RUN)/lr \
	  --out=$(RUN)/report.html

# make pod-local   trains with two, then four processes on this machine, as on several hosts: docs/pods.md
POD ?= runs/pod
pod-local: $(INSTALLED)
	$(BIN)/python -m data_pipelines.build --dataset=synthetic --out=$(POD)/data
	for shape in '2 4' '4 2'; do \
	  set -- $$shape; \
	  $(BIN)/python -m deres_jax.pod --processes=$$1 --devices=$$2 -- \
	    --config=experiments/quickstart.py --workdir=$(POD)/$$1x$$2 \
	    --config.data.path=$(POD)/data || exit $$?; \
	done

# make pod-tpu, pod-gke, pod-slurm   commands to edit for a Cloud TPU, for xpk, for sbatch
pod-tpu:
	@$(call shown,Cloud TPU VM)
pod-gke:
	@$(call shown,GKE with xpk)
pod-slurm:
	@$(call shown,Slurm)

shown = sed -n '/^\#\# $(1)$$/,/^\#\# /{ /^```/,/^```/p; }' docs/pods.md | sed -n '2,/^```/{ /^```/!p; }'

# make criteo-sample RAW=train.txt OUT=DIR   docs/results/criteo_sample.md: three splits, all models
OUT ?= runs/criteo_sample
JOBS ?= 2
criteo-sample: $(INSTALLED)
	test -n '$(RAW)' || { echo 'give the raw file: make criteo-sample RAW=train.txt' >&2; exit 2; }
	for split in 1 2 3; do \
	  $(BIN)/python -m data_pipelines.build --dataset=criteo --raw='$(RAW)' \
	    --out=$(OUT)/data/$$split --seed=$$split && \
	  for experiment in anchors baselines; do \
	    $(BIN)/python -m deres_jax.sweep --config=experiments/$$experiment.py --jobs=$(JOBS) \
	      --out=$(OUT)/$$split --config.data.path=$(OUT)/data/$$split --config.seed=$$split \
	      || exit 1; \
	  done || exit 1; \
	done
	$(BIN)/python -m deres_jax.compare --sweeps=$(OUT)/1,$(OUT)/2,$(OUT)/3 --reference=OneTrans \
	  --title='Thirteen models on the Criteo sample' \
	  --command='make criteo-sample RAW=train.txt' --out=$(OUT)/criteo_sample.md

# make claims RAW=train.txt RESULTS=DIR   docs/results/claims.md: the paper's claims, with verdicts
CLAIMS ?= runs/claims
RESULTS ?= $(CLAIMS)/results
CHOSEN := Settings were chosen on validation, with seeds that the sweep does not use: see the head \
  of experiments/scaling_depth_cpu.py.
CLAIMED := OneTrans,AttnRes,DeRes-P,DeRes-S
claims: $(INSTALLED)
	test -n '$(RAW)' || { echo 'give the raw file of Criteo: make claims RAW=train.txt' >&2; exit 2; }
	$(BIN)/python -m data_pipelines.build --dataset=synthetic --out=$(CLAIMS)/data --fields=8 \
	  --cardinality_max=16 --order_shares=0.2,0.3,0.3,0.2 --rows_train=400000 \
	  --rows_validation=50000 --rows_test=100000
	$(BIN)/python -m data_pipelines.build --dataset=criteo --raw='$(RAW)' --out=$(CLAIMS)/criteo \
	  --seed=1
	$(BIN)/python -m deres_jax.sweep --config=experiments/scaling_depth_cpu.py \
	  --out=$(CLAIMS)/planted --config.data.path=$(CLAIMS)/data
	$(BIN)/python -m deres_jax.sweep --config=experiments/scaling_depth_sample.py \
	  --out=$(CLAIMS)/sample --config.data.path=$(CLAIMS)/criteo
	# What the page of laws links to, without checkpoints and logits.
	for run in $$(cd $(CLAIMS) && ls -d planted/runs/* sample/runs/*); do \
	  mkdir -p $(RESULTS)/claims/$$run && \
	  cp $(CLAIMS)/$$run/config.json $(RESULTS)/claims/$$run/ && \
	  sed -e 's#"test_logits": ".*/#"test_logits": "#' -e '/^ "audit": {/,/^ },$$/d' \
	    $(CLAIMS)/$$run/result.json \
	    > $(RESULTS)/claims/$$run/result.json || exit 1; \
	done
	cp $(CLAIMS)/planted/sweep.json $(RESULTS)/claims/planted/
	cp $(CLAIMS)/sample/sweep.json $(RESULTS)/claims/sample/
	$(BIN)/python -m deres_jax.scaling --sweep=$(RESULTS)/claims/planted --curves=$(CLAIMED) \
	  --match=depth=16 --out=$(RESULTS)/claims/scaling
	$(BIN)/python -m deres_jax.claims --sweep=$(CLAIMS)/planted --data=$(CLAIMS)/data \
	  --widths=64,128 --exploratory=$(CLAIMS)/sample --title="The paper's claims, put to the test" \
	  --command='make claims RAW=train.txt' --note='$(CHOSEN)' \
	  --out=$(RESULTS)/claims.md

# make test-slow   what is too long for the suite
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# make faults KILLS=100 SEED=1   kills a small run at random, also during saves; it must end bit-equal
SMALL := --rows_train=6000 --rows_validation=1500 --rows_test=1500 --fields=6 --cardinality_max=40
KILLS ?= 100
SEED ?= 1
FAULTS := runs/faults
faults: $(INSTALLED)
	rm -rf $(FAULTS)
	$(BIN)/python -m data_pipelines.build --dataset=synthetic --out=$(FAULTS)/data $(SMALL)
	$(BIN)/python tests/faults/kills.py --data=$(FAULTS)/data --out=$(FAULTS)/kills \
	  --kills=$(KILLS) --seed=$(SEED)

# make soak MINUTES=30   trains, evaluates and saves for that long; reports memory growth and files
MINUTES ?= 30
SOAK := runs/soak
soak: $(INSTALLED)
	rm -rf $(SOAK)
	$(BIN)/python -m data_pipelines.build --dataset=synthetic --out=$(SOAK)/data $(SMALL)
	$(BIN)/python tests/faults/soak.py --data=$(SOAK)/data --out=$(SOAK)/out --minutes=$(MINUTES)

# make fuzz   damaged files and settings: FUZZ times the suite's examples, newly drawn
FUZZ ?= 50
fuzz: $(INSTALLED)
	FUZZ=$(FUZZ) $(BIN)/python -m pytest tests/project/test_fuzz.py tests/data_pipelines/text/test_fuzz_raw.py

# make lock   requirements.lock: exact versions with hashes, for Python 3.11 on Linux x86-64
lock: $(INSTALLED)
	$(BIN)/python -m pip install -q uv
	echo 'setuptools>=77' | $(BIN)/uv pip compile -q pyproject.toml - --extra dev \
	  --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	  --upgrade --no-header --no-emit-index-url -o requirements.lock

# make audit   known vulnerabilities in requirements.lock, by pip-audit
ADVISORIES := https://pypi.org/pypi/pip/json
audit: $(INSTALLED)
	@$(BIN)/python -c 'import urllib.request as r; r.urlopen("$(ADVISORIES)", timeout=20).read(1)' \
	  2>/dev/null || { echo 'make audit: no advisories from $(ADVISORIES): no network to it' >&2; \
	  exit 75; }
	$(BIN)/python -m pip install -q pip-audit
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements.lock

# make tutorial   runs every command of docs/tutorial.md
tutorial: $(INSTALLED)
	$(BIN)/python -m pytest -m slow tests/project/test_guide.py

# make bench   steps, tables, starts and metrics, compared with PyTorch, scikit-learn and limits
bench: $(INSTALLED)
	$(BIN)/python -m pip install -q -e '.[bench]'
	mkdir -p runs
	$(BIN)/python tests/bench/bench.py --out=runs/bench.json

# make bench-data   preparing and reading data, compared with alternatives: runs/bench_data.json
bench-data: $(INSTALLED)
	$(BIN)/python -m pip install -q -e '.[bench]'
	mkdir -p runs
	$(BIN)/python tests/bench/data.py --out=runs/bench_data.json

# make bench-scale   large tables and many devices, compared with alternatives: runs/bench_scale.json
bench-scale: $(INSTALLED)
	mkdir -p runs
	$(BIN)/python tests/bench/scale.py --out=runs/bench_scale.json

# make docs   write the tables of docs/models.md from the registered models
docs: $(INSTALLED)
	$(BIN)/python tests/models/references/models_page.py

# make lint   ruff; make format rewrites
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf runs build *.egg-info .pytest_cache .ruff_cache
