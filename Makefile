.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEMO_SECONDS ?= 120
CYCLES ?= 10
STARTS ?= 50
MINUTES ?= 30
SECONDS ?= 60
TARGET ?= beauty
SOURCE ?= food,kitchen
LABELS ?= categories:2-3
RANK ?= food,kitchen
REPORT ?= .xplat/evaluation
EVENTS ?= 2000000
PEERS ?= all
# Most tests wait for servers, not for the processor: two at a time take half as long, each with its own servers.
TEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist loadfile
CHAOS = $(BIN)/python -m tests.chaos $(1) $(if $(SEED),--seed $(SEED))

.PHONY: help setup lint test chaos fresh-groups soak release-faults faults fuzz demo up down evaluate bench bench-quick lock clean

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make the virtual environment from the hashed lock file (Python 3.11 or 3.12, Linux x86-64)

$(READY): requirements/dev.txt requirements/uv.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "make: Python %d.%d found; the local Triton needs 3.11 or 3.12: make PYTHON=python3.11" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip install --quiet --require-hashes -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --no-deps --editable .
	touch $@

demo: $(READY) ## Watch three platforms become profiles: stack, training, worker, live view, refresh, proof (DEMO_SECONDS=120)
	$(BIN)/xplat demo --seconds $(DEMO_SECONDS)

test: $(READY) ## Run every test against a real Kafka and a real Triton
	$(TEST)

chaos: $(READY) ## Break things under load and ask the oracle (CYCLES=10 SEED=… FAULTS=kill,stop)
	$(call CHAOS,cycles) --cycles $(CYCLES) $(if $(FAULTS),--faults $(FAULTS))

fresh-groups: $(READY) ## Let workers join groups that never committed, while producers run (STARTS=50 SEED=…)
	$(call CHAOS,fresh-groups) --starts $(STARTS)

soak: $(READY) ## Stream at half load and watch memory, descriptors and stalls (MINUTES=30)
	$(call CHAOS,soak) --minutes $(MINUTES)

release-faults: $(READY) ## Kill trainer, command, worker or Triton at each step of a release (DEATHS=announced,loading)
	$(call CHAOS,releases) $(if $(DEATHS),--deaths $(DEATHS))

faults: $(READY) ## Run every test and write the results into docs/reference/faults.md
	$(TEST) --record-faults

fuzz: $(READY) ## Fuzz everything that reads bytes from outside (SECONDS=60); what it finds lies in .xplat/fuzz
	$(BIN)/uv pip install --quiet --require-hashes -r requirements/fuzz.txt
	mkdir -p .xplat/fuzz/corpus
	PYTHONPATH=. $(BIN)/python tests/fuzz/fuzz_admission.py .xplat/fuzz/corpus tests/fuzz/corpus \
	  -max_total_time=$(SECONDS) -max_len=40000 -timeout=5 -rss_limit_mb=1024 -artifact_prefix=.xplat/fuzz/

lint: $(READY) ## Check style, types and the direction of the arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

up: $(READY) ## Start Kafka and Triton and create the topics
	$(BIN)/xplat up

down: $(READY) ## Stop them; data stays in .xplat/
	$(BIN)/xplat down

evaluate: $(READY) ## Measure the model beside baselines on a recorded log (DATA=folder TARGET=beauty SOURCE=… LABELS=… REPORT=…)
	@test -n "$(DATA)" || { echo "make: name a recorded log: make evaluate DATA=folder" >&2; exit 2; }
	$(BIN)/xplat evaluate --dataset $(DATA) --labels $(LABELS) --target "$(TARGET)" --source "$(SOURCE)" \
	  --rank "$(RANK)" --report $(REPORT) --plant-harmful --json

bench: $(READY) ## Measure this machine beside its peers (EVENTS=2000000 PEERS=all MODELS=folder); tables and plots in .xplat/bench
	OMP_NUM_THREADS=1 $(BIN)/xplat bench all --events $(EVENTS) --peers $(PEERS) --report .xplat/bench $(if $(MODELS),--models $(MODELS)) --json

bench-quick: $(READY) ## Say in three minutes which stage became slower than benchmarks/baseline.json, as ratios within this run
	OMP_NUM_THREADS=1 $(BIN)/xplat bench quick --json

lock: $(READY) ## Resolve the lock files again
	$(BIN)/uv pip compile --quiet --generate-hashes --no-build requirements/uv.in -o requirements/uv.txt
	$(BIN)/uv pip compile --quiet --generate-hashes --no-build requirements/fuzz.in -o requirements/fuzz.txt
	for peer in quix bytewax pathway; do \
	  $(BIN)/uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-build \
	    requirements/peers-$$peer.in -o requirements/peers-$$peer.txt; \
	done
	for extra in dev worker trainer; do \
	  $(BIN)/uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-build --upgrade \
	    --extra $$extra pyproject.toml -o requirements/$$extra.txt; \
	done

clean: ## Stop the stack and remove everything that was made, data included
	test ! -x $(BIN)/xplat || $(BIN)/xplat down
	rm -rf .venv .xplat dist .pytest_cache .mypy_cache .ruff_cache model_repo/*/[0-9]* model_repo.staging model_repo.releases
