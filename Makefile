# The two commands to know: `make demo` and `make test`. Each sets itself up in .venv first.
VENV := .venv
GEN_VENV := .venv-gen
LOCK_VENV := .venv-lock
AUDIT_VENV := .venv-audit
PYTHON := $(VENV)/bin/python
INSTALL := $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-compile
PROTOS := $(wildcard protos/pagestream/*/v1/*.proto)
CONTRACT := tests/golden/contract.binpb
SYSTEM_PYTHON := $(shell command -v python3)
# A tool of the environment, not of the machine.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo eval guide test check audit gen lock slow soak clients tokenizers gpu bench release-contract setup clean

demo: $(VENV)/.ready ## Serves 60 chats through a router and two engines; MODEL=<folder or hub ID>, or random; TP=<ranks of each>.
	$(PYTHON) -m examples.demo $(if $(MODEL),--model "$(MODEL)") $(if $(TP),--tensor-parallel-size "$(TP)")

eval: $(VENV)/.ready ## Asks the demo model 1,000 held-out questions, through Pagestream and transformers.
	$(PYTHON) -m demo_model.evaluate

guide: export OMP_NUM_THREADS := 1
guide: $(VENV)/.ready ## Runs the guide's steps and writes what they print into its pages.
	$(PYTHON) -m examples.guide

# Two workers share the files of tests, in their order: the long ones are not among the last.
# Services spend much time waiting, so two files of them run at a time; those of engines with a
# model then have the machine to themselves, for they keep all of it busy. OpenMP's threads would
# spin at each barrier while others need the processor. A worker that crashes fails the test that it
# was in and ends the run: with another in its place, xdist 3.8 may wait for ever, because it hands
# out again what the lost one had finished (pytest-xdist issue 1378).
TWO_WORKERS := --numprocesses 2 --dist loadfile --max-worker-restart 0
BUSY := $(addprefix tests/system/test_,demo.py demo_model.py failover.py greedy_parity.py ranks.py serve.py)
test: export OMP_NUM_THREADS := 1
test: $(VENV)/.ready $(GEN_VENV)/.ready ## All tests that need no GPU and little time.
	$(PYTHON) -m pytest -q $(TWO_WORKERS) --no-loadscope-reorder --ignore tests/system
	$(PYTHON) -m pytest -q $(TWO_WORKERS) tests/system $(BUSY:%=--ignore=%)
	$(PYTHON) -m pytest -q $(BUSY)

check: $(VENV)/.ready ## Style, types, import rules, wire contract, manifests.
	ruff check
	ruff format --check
	mypy
	lint-imports
	buf lint
	buf format --diff --exit-code
	buf breaking --against $(CONTRACT)
	yamllint --strict k8s
	yamllint --strict --config-data '{extends: default, rules: {line-length: disable}}' .github
	hadolint k8s/images/*.Dockerfile
	$(PYTHON) -m pytest -q tests/contract/test_k8s*.py tests/contract/test_images.py

audit: ## checkov on every overlay, zizmor on the workflows, known vulnerabilities of what the images install.
	$(SYSTEM_PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		'checkov==3.3.30' 'pip-audit==2.10.1' 'zizmor==1.32.0'
	mkdir -p $(AUDIT_VENV)/overlays
	for overlay in $(notdir $(wildcard k8s/overlays/*)); do \
		kubectl kustomize "k8s/overlays/$$overlay" > "$(AUDIT_VENV)/overlays/$$overlay.yaml" || exit 1; \
	done
	$(AUDIT_VENV)/bin/checkov --config-file k8s/checkov.yaml --directory $(AUDIT_VENV)/overlays
	$(AUDIT_VENV)/bin/zizmor --offline --quiet .github
	for image in router engine; do \
		$(AUDIT_VENV)/bin/pip-audit --disable-pip --require-hashes --strict --progress-spinner off \
			--requirement "k8s/images/$$image-requirements.txt" || exit 1; \
	done

gen: $(GEN_VENV)/.ready ## Regenerates the Python code of the wire contract.
	$(GEN_VENV)/bin/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

lock: ## Pins the newest versions that pyproject.toml allows, in constraints.txt and for the images.
	$(SYSTEM_PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'uv==0.13.9'
	$(LOCK_VENV)/bin/uv pip compile pyproject.toml --all-extras --universal --upgrade --quiet \
		--python-version 3.11 --no-emit-package pagestream --no-emit-index-url \
		--annotation-style line --custom-compile-command 'make lock' --output-file constraints.txt
	$(call lock_image,router,--extra router)
	$(call lock_image,engine,--extra engine --extra smg)

# What an image installs: the pins above with the hashes of their files. Setuptools builds our wheel.
define lock_image
	echo 'setuptools>=77' | $(LOCK_VENV)/bin/uv pip compile pyproject.toml - $(2) --quiet \
		--constraint constraints.txt --universal --python-version 3.12 --generate-hashes \
		--no-emit-package pagestream --no-emit-index-url --no-annotate \
		--custom-compile-command 'make lock' --output-file k8s/images/$(1)-requirements.txt
endef

slow: $(VENV)/.ready ## Tests too long for every change.
	$(PYTHON) -m pytest -q -m slow --timeout 600

soak: $(VENV)/.ready ## 200 streams for 10 minutes while engines are killed, stopped and restarted.
	$(PYTHON) -m benchmarks.router.soak

clients: $(VENV)/.ready ## Tools that ask the HTTP port, each installed in .venv-clients; TOOLS=<names> for some.
	$(PYTHON) -m tests.clients $(TOOLS)

tokenizers: $(VENV)/.ready ## Tokenizers that packages bundle, each compared with transformers, fetched into .venv-tokenizers; NAMES=<names> for some.
	$(PYTHON) -m tests.tokenizers $(NAMES)

gpu: ## Tests for a machine with a CUDA GPU, with the python3 that is there.
	$(SYSTEM_PYTHON) -m pytest -q -m "gpu or multi_gpu" tests/kernels tests/engine_service tests/mutants

bench: ## Kernels and engine on a CUDA GPU, with the python3 that is there.
	$(SYSTEM_PYTHON) -m benchmarks.kernels
	$(SYSTEM_PYTHON) -m benchmarks.prefill_attention --output benchmarks/results/h200/prefill_attention.json
	$(SYSTEM_PYTHON) -m benchmarks.decode_attention --output benchmarks/results/h200/decode_attention.json
	$(SYSTEM_PYTHON) -m benchmarks.engine --profile

release-contract: $(VENV)/.ready ## Makes today's protos the contract that `buf breaking` defends.
	buf build -o $(CONTRACT)

setup: $(VENV)/.ready $(GEN_VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(SYSTEM_PYTHON) -m venv $(VENV)
	$(INSTALL) --constraint constraints.txt --editable '.[dev]' \
		|| { echo "constraints.txt cannot be installed here: taking the newest versions in range"; $(INSTALL) --editable '.[dev]'; }
# pip would compile with one processor. Some files of packages are templates, not Python.
	$(PYTHON) -m compileall -qq --workers 0 $(VENV)/lib || true
	touch $@

# grpcio-tools needs an older protobuf than the services run with, hence an environment of its own.
$(GEN_VENV)/.ready: Makefile
	$(SYSTEM_PYTHON) -m venv $(GEN_VENV)
	$(GEN_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'grpcio-tools==1.80.0'
	touch $@

clean:
	rm -rf $(VENV) $(GEN_VENV) $(LOCK_VENV) $(AUDIT_VENV) .venv-clients .venv-tokenizers .demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
