# Every target sets up what it needs. `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
CHECKPOINT ?= examples/shapes/checkpoint
BUNDLE ?= build/bundles/shapes
PRECISION ?= fp32
BACKEND ?= tensorrt-rtx
GPUS ?=
PROMPT ?= a red circle on a white background
PROMPTS ?= examples/shapes/prompts.txt
OUTPUT ?= build/image.png
JOBS ?= 4
KILLS ?= 3
MINUTES ?= 1
EXAMPLES ?= 500
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
# Threads beyond the cores slow small graphs down: one a worker. A file's tests share a worker and its fixtures.
TEST_ENV := TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
WORKERS := --numprocesses logical --maxprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo control test coverage test-families test-full test-page test-ray test-offline test-isa test-lowest wheel-check compatibility fuzz fuzz-routes kill-test lint format types bundle check parity bench bench-full bench-peers gpu-check gpu-pack gpu-placement inspect-engines engines int8 image augment-study serve serve-bench serve-soak screenshots docker docker-serve clean

help: ## list the targets
	@printf 'make TARGET [VARIABLE=value]\n\n'
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@printf '\nVariables: PYTHON VENV PIP_ARGS CHECKPOINT BUNDLE PRECISION BACKEND GPUS PROMPT PROMPTS OUTPUT JOBS KILLS MINUTES EXAMPLES, and ARGS for\nmore arguments of the command that a target ends in.\n'

setup: $(STAMP) ## make the virtual environment; a no-op while pyproject.toml and constraints/ stand

$(STAMP): pyproject.toml constraints/runtime.txt constraints/development.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed: make setup PYTHON=python3.11"; exit 3; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --require-hashes --requirement constraints/runtime.txt
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints/development.txt --editable ".[dev]"
	@touch $@

demo: setup ## export the example checkpoint, make a grid beside torch's images
	$(BIN)/python examples/demo.py $(ARGS)

control: bundle ## add the example ControlNet to BUNDLE, make a picture of what edges lead
	$(BIN)/latentrt control "$(BUNDLE)" edges=examples/shapes/controlnet -o "$(BUNDLE)-control" --overwrite
	$(BIN)/python examples/control.py build/control.png

test: setup ## run the tests, in one process a core and JOBS at most
	OMP_NUM_THREADS=1 $(TEST_ENV) $(BIN)/python -m pytest -m "not full and not families and not page and not ray" $(WORKERS) $(ARGS)

coverage: setup ## run the tests and print which lines of each module none of them reaches
	OMP_NUM_THREADS=1 $(TEST_ENV) $(BIN)/python -m pytest -m "not full and not families and not page and not ray" $(WORKERS) --cov $(ARGS)

test-families: setup ## run what `make test` leaves out: all families but two, and the longest of the other tests
	OMP_NUM_THREADS=1 $(TEST_ENV) $(BIN)/python -m pytest -m "families and not full" --numprocesses logical --maxprocesses $(JOBS) --dist load $(ARGS)

test-full: setup ## run all tests, full-size models among them: minutes and gigabytes
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(TEST_ENV) $(BIN)/python -m pytest $(ARGS)

test-page: setup ## the server's page in a real Chromium, half a minute; skipped where there is none (docs/serving.md)
	OMP_NUM_THREADS=1 $(TEST_ENV) $(BIN)/python -m pytest -m "page and not ray" tests/serving/test_page.py -rs $(ARGS)

test-ray: setup ## the protocols and the faults of a cluster on a real Ray of this machine: minutes
	OMP_NUM_THREADS=1 $(TEST_ENV) $(BIN)/python -m pytest -m "ray and not page" -rs $(ARGS)

compatibility: setup ## write docs/compatibility.md from the marks of the tests, without running them
	$(TEST_ENV) $(BIN)/python -m pytest --write-compatibility

test-offline: setup ## every command with all internet sockets refused, minutes; under strace too where there is one
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest tests/test_offline.py $(ARGS)

test-isa: setup ## the numeric tests as on processors with fewer instructions, under four sets of them
	OMP_NUM_THREADS=1 $(TEST_ENV) $(BIN)/python tests/instruction_sets.py $(WORKERS) $(ARGS)

test-lowest: bundle ## the runtime's tests on the lowest versions that pyproject.toml allows, without torch
	$(BIN)/python tests/lowest.py "$(BUNDLE)" $(ARGS)

wheel-check: bundle ## build the wheel, install it in bare environments, make images there and check a program's types
	$(BIN)/python tests/wheel.py "$(BUNDLE)" $(ARGS)

fuzz: setup ## try damaged inputs of every kind for MINUTES; ARGS="--seed 1 --kinds loras" takes a part
	cd tests && OMP_NUM_THREADS=1 $(TEST_ENV) $(abspath $(BIN))/python -m fuzz --minutes $(MINUTES) $(ARGS)

fuzz-routes: setup ## ask every route of the server for EXAMPLES things, right and wrong; minutes
	ROUTE_EXAMPLES=$(EXAMPLES) OMP_NUM_THREADS=1 $(TEST_ENV) $(BIN)/python -m pytest tests/serving/test_routes.py $(ARGS)

lint: setup ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## format, and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## check the types of runtime, export, calibration, serving, benchmarks and examples
	@# Type checkers follow folders, not the mapping in pyproject.toml: links make the package as it is installed.
	@rm -rf build/types/latentrt && mkdir -p build/types/latentrt
	@ln -s $(foreach path,$(wildcard runtime/*) export calibration serving,../../../$(path)) build/types/latentrt
	MYPYPATH=build/types:examples:typings/tensorrt11:typings/rtx $(BIN)/mypy --package latentrt --package benchmarks $(patsubst examples/%.py,--module %,$(wildcard examples/*.py))
	@# Each a script beside others, some of the names of those above.
	MYPYPATH=build/types:examples/shapes:typings/tensorrt11:typings/rtx $(BIN)/mypy --cache-dir .mypy_cache/shapes $(patsubst examples/shapes/%.py,--module %,$(wildcard examples/shapes/*.py))
	@# TensorRT's part once more against the bindings of version 10, and what TensorRT for RTX alone has against its own.
	MYPYPATH=build/types:typings/tensorrt10:typings/rtx $(BIN)/mypy --cache-dir .mypy_cache/tensorrt10 --package latentrt.backends.tensorrt --package latentrt.export.engines

bundle: $(BUNDLE)/bundle.json ## export CHECKPOINT to BUNDLE if it is missing or older

$(BUNDLE)/bundle.json: $(wildcard $(CHECKPOINT)/*/*) | setup
	$(BIN)/latentrt export "$(CHECKPOINT)" -o "$(BUNDLE)" --precision $(PRECISION) --overwrite

check: bundle ## compare BUNDLE with CHECKPOINT, a few cases a sampler
	$(BIN)/latentrt check "$(BUNDLE)" --against "$(CHECKPOINT)" --prompts "$(PROMPTS)" --quick $(ARGS)

parity: bundle ## the same in full: every sampler, size, batch and guidance
	$(BIN)/latentrt check "$(BUNDLE)" --against "$(CHECKPOINT)" --prompts "$(PROMPTS)" $(ARGS)

bench: bundle ## measure BUNDLE against torch on CHECKPOINT
	$(BIN)/latentrt bench "$(BUNDLE)" --against "$(CHECKPOINT)" --backend all $(ARGS)

bench-full: setup ## measure Stable Diffusion 1.5 in full size: up to an hour, 10 GB of memory
	$(BIN)/python -m benchmarks.full $(ARGS)

bench-peers: setup ## measure other runtimes beside this one, each in an environment of its own that it makes (3 GB); ARGS="--full" for a whole model
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.peers $(ARGS)

gpu-check: setup ## on a machine with an NVIDIA GPU: parity and speed of every backend against torch
	$(BIN)/python -m benchmarks.gpu $(ARGS)

gpu-pack: setup ## all that gpu-check needs, in pieces, for a machine without a network; ARGS="--arch 90 --there FILE"
	$(BIN)/python -m benchmarks.gpu --only prepare --precision fp32,fp16
	$(BIN)/python -m benchmarks.gpu.pack $(ARGS)

gpu-placement: setup ## what onnxruntime's CUDA provider makes of graphs, without a GPU: downloads 260 MB, needs a C compiler
	$(BIN)/python -m benchmarks.placement $(ARGS)

inspect-engines: $(if $(wildcard $(BUNDLE)/bundle.json),setup,bundle) ## what Polygraphy sees in BUNDLE's graphs and plans; plans need a GPU
	$(BIN)/python benchmarks/inspect_engines.py "$(BUNDLE)" $(ARGS)

kill-test: setup ## kill every command that writes KILLS times at random moments, fill its disk, run two at once; compare the bytes
	$(BIN)/python -m benchmarks.kills --kills $(KILLS) $(ARGS)

engines: $(if $(wildcard $(BUNDLE)/bundle.json),setup,bundle) ## build TensorRT engines of BUNDLE for GPUS, such as sm89,sm120; needs no GPU
	$(BIN)/latentrt build "$(BUNDLE)" --backend $(BACKEND) $(if $(GPUS),--gpus $(GPUS)) $(ARGS)

int8: bundle ## calibrate BUNDLE on PROMPTS to an int8 bundle beside it, judged on every backend
	$(BIN)/latentrt calibrate "$(BUNDLE)" -o "$(BUNDLE)-int8" --prompts "$(PROMPTS)" $(ARGS)

image: bundle ## make an image of PROMPT as OUTPUT
	$(BIN)/latentrt generate "$(BUNDLE)" "$(PROMPT)" -o "$(OUTPUT)" --overwrite $(ARGS)

augment-study: setup ## augment rendered shapes in every mode; judge labels, train a detector with and without: minutes, installs Ultralytics in build
	$(BIN)/python -m benchmarks.augment $(ARGS)

serve: bundle ## serve BUNDLE on this machine: http://127.0.0.1:7860; ARGS="--port 8000"
	$(BIN)/latentrt serve "$(BUNDLE)" $(ARGS)

screenshots: bundle ## take the pictures of the server's page in docs/images, in Chromium
	$(BIN)/python examples/screenshots.py "$(BUNDLE)" docs/images

serve-bench: bundle ## measure serving BUNDLE under load against serial serving: ten minutes; ARGS="--jobs 12 --backend openvino"
	$(BIN)/python -m benchmarks.serving --bundle "$(BUNDLE)" $(ARGS)

serve-soak: bundle ## 2000 mixed requests to a server of BUNDLE, 64 at a time, each picture against the one made alone
	$(BIN)/python -m benchmarks.serving --bundle "$(BUNDLE)" --soak 2000 $(ARGS)

docker: ## build the runtime image, without torch; ARGS="--target build" the one that exports and builds engines
	docker build --tag latentrt $(ARGS) .

docker-serve: ## build the image that serves bundles, without torch (docs/serving.md says how it is run)
	docker build --tag latentrt-serve --target serve $(ARGS) .

clean: ## remove what was built; the virtual environment and the state of a training stay
	rm -rf build/bundles build/checkpoints build/gpu-check build/types build/lib build/bdist.* build/*.png
	rm -rf dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
