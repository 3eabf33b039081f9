# presift: `make demo` runs the demo, `make test` the tests. Both install what they need in .venv/ and PRESIFT_HOME.
PRESIFT_HOME ?= $(HOME)/.cache/presift
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# Each worker is a process with tests of its own; 0 runs all tests in one. In the order of the folders, so that the
# cheap unit tests come last and both workers end together.
TEST_WORKERS ?= 2
# Many of the fast tests wait for a deadline.
FAST_WORKERS ?= 4
PYTEST := $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup --no-loadscope-reorder
LOCK := ops/locks/cpu.txt
STAMP := $(VENV)/.installed
# Tools that inspect the packages have an environment of their own, so that they change no version.
TOOLS := $(VENV)/tools
TOOLS_LOCK := ops/locks/tools.txt
TOOLS_STAMP := $(TOOLS)/.installed
CHAIN := ops/supply_chain
# The TypeScript client's packages; npm writes the stamp.
TYPESCRIPT := clients/typescript
TYPESCRIPT_STAMP := $(TYPESCRIPT)/node_modules/.package-lock.json
# The libraries that applications use have an environment of their own: some need other versions than the services.
CLIENTS := .venv-clients
CLIENTS_STAMP := $(CLIENTS)/.installed
CLIENTS_CI_STAMP := $(CLIENTS)/.installed-ci
# Load generators and Inspect need versions of their own.
LOAD := .venv-load
INSPECT := .venv-inspect
# The packages of `presift eval --suite`.
SUITES := .venv-suites
# Peers of the benchmarks: each needs another version of transformers.
LONGLLMLINGUA := .venv-longllmlingua
KVPRESS := .venv-kvpress
# Debian's library that gives a process another clock.
FAKETIME := $(VENV)/lib/libfaketimeMT.so.1
LOAD_STAMP := $(LOAD)/.installed
INSPECT_STAMP := $(INSPECT)/.installed
SUITES_STAMP := $(SUITES)/.installed
PEERS_STAMPS := $(LONGLLMLINGUA)/.installed $(KVPRESS)/.installed
CLIENTS_NODE := tests/clients/node
CLIENTS_NODE_STAMP := $(CLIENTS_NODE)/node_modules/.package-lock.json
CLIENTS_CI := $(patsubst %,tests/clients/test_%.py,openai openai_responses langchain pydantic_ai anthropic)
TEST_MODEL := smollm2-135m-instruct
DEMO_MODELS := qwen2.5-coder-0.5b-instruct qwen2.5-coder-1.5b-instruct

export PRESIFT_HOME
# Threads that spin while they wait would take cores from the other processes (ops/decisions/0005).
export OMP_WAIT_POLICY := passive
export TOKENIZERS_PARALLELISM := false
# Compiling the modules anew in every process takes seconds each.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install models demo-models demo test test-fast test-clients test-clients-ci suites peers test-models selection-floors faults versions faketime sglang-canary engines engines-check soak fuzz check supply-chain dashboards dashboards-check alerts promtool release dist format protos protos-check bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP) ## create .venv with everything that a plain CPU needs

# --no-deps: the lock is complete, and no package may pull in another version of torch.
$(STAMP): $(LOCK) pyproject.toml
	@echo "== installing into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "presift needs Python 3.11 or newer")'
	@$(BIN)/pip install -qq --disable-pip-version-check --progress-bar off --no-deps -r $(LOCK)
	@$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

models: $(STAMP) ## download the small model that the tests use
	@$(BIN)/python -m presift_demo_models ensure --home "$(PRESIFT_HOME)" $(TEST_MODEL)

demo-models: $(STAMP) ## download the demo pair (1.6 GB; 4 GB on disk as bf16 safetensors)
	@$(BIN)/python -m presift_demo_models ensure --home "$(PRESIFT_HOME)" $(DEMO_MODELS)

demo: demo-models ## ask a real document a question five times: full, spec_pc cold and cached, spec_kv cold and again
	@$(BIN)/python ops/demo/demo.py

test: $(STAMP) models check ## lint, types, layers, protos, then the tests
	@$(PYTEST) -m "not pair and not gpu and not faults"

test-fast: $(STAMP) ## the tests without processes and real models: unit, reference, contract (about three minutes on two cores)
	@$(PYTEST) -n $(FAST_WORKERS) --hypothesis-profile=fast -m "not pair and not gpu and not faults and not models and not processes" \
		tests/unit tests/reference tests/contract

CLIENTS_PYTEST = @PRESIFT_PYTHON=$(abspath $(BIN))/python $(CLIENTS)/bin/python -m pytest --confcutdir=tests/clients

test-clients: $(STAMP) models $(CLIENTS_STAMP) $(LOAD_STAMP) $(INSPECT_STAMP) $(CLIENTS_NODE_STAMP) ## the libraries, load generators and harnesses that people use, against the HTTP API (six minutes to install, nine to run)
	$(CLIENTS_PYTEST) tests/clients

test-clients-ci: $(STAMP) models $(CLIENTS_CI_STAMP) ## of these, OpenAI's, LangChain, Pydantic AI and Anthropic's (a minute in all)
	$(CLIENTS_PYTEST) $(CLIENTS_CI)

$(CLIENTS_STAMP): tests/clients/requirements.lock
$(CLIENTS_CI_STAMP): tests/clients/ci.lock
$(LOAD_STAMP): tests/clients/load.lock
$(INSPECT_STAMP): tests/clients/inspect.lock
$(SUITES_STAMP): tests/bench/suites.lock
$(LONGLLMLINGUA)/.installed: tests/bench/peers/longllmlingua.lock
$(KVPRESS)/.installed: tests/bench/peers/kvpress.lock
$(CLIENTS_STAMP) $(CLIENTS_CI_STAMP) $(LOAD_STAMP) $(INSPECT_STAMP) $(SUITES_STAMP) $(PEERS_STAMPS): | $(STAMP)
	@echo "== installing into $(@D)"
	@test -x $(@D)/bin/python || $(BIN)/python -m venv $(@D)
	@$(@D)/bin/pip install -qq --disable-pip-version-check --progress-bar off --no-deps -r $<
	@touch $@

suites: $(SUITES_STAMP) ## install the packages of `presift eval --suite` into .venv-suites; tests of the suites then use them

peers: $(PEERS_STAMPS) ## install LongLLMLingua and kvpress into environments of their own, for tests/bench/peers; their tests then use them

$(CLIENTS_NODE_STAMP): $(CLIENTS_NODE)/package-lock.json
	@cd $(CLIENTS_NODE) && npm ci --silent --no-audit

test-models: $(STAMP) models demo-models ## all tests, with those on the real demo pair
	@$(PYTEST) -m "not gpu and not faults"

selection-floors: models ## measure the recall of answers anew, after a change that is meant to change the selection (two minutes)
	@$(BIN)/python tests/bench/selection_recall.py --model "$(PRESIFT_HOME)/models/$(TEST_MODEL)" --write

faults: $(STAMP) ## kill, stop, starve and soak real processes, and run two versions together (over half an hour); writes tests/faults/RESULTS.md
	@test -e $(FAKETIME) || $(MAKE) --no-print-directory faketime || echo "== faults of clocks: NOT TESTED, libfaketime could not be downloaded"
	@$(BIN)/python -m pytest tests/faults --write-results

versions: $(STAMP) ## run an earlier version's services, clients and cached values together with this one's, upgrade and roll back (OLD=<git ref>; default: the newest tag, else a commit of 2026-11-30)
	@$(BIN)/python -m pytest tests/faults/test_versions.py --write-results $(if $(OLD),--old=$(OLD))

sglang-canary: $(STAMP) ## try a version of SGLang: what changed in the functions that presift hooks or uses, and the tests of KV and seeds on it (SGLANG=0.5.23)
	@$(BIN)/python ops/sglang/canary.py $(SGLANG) $(TESTS)

engines: $(STAMP) ## write README's table of engines and models
	@$(BIN)/python ops/sglang/support_table.py

engines-check: $(STAMP)
	@$(BIN)/python ops/sglang/support_table.py --check

soak: $(STAMP) ## 30 minutes of mixed traffic with restarts; fails if anything leaks
	@PYTHONPATH=services:clients/python $(BIN)/python -m tests.faults.soak --minutes 30

check: $(STAMP) protos-check supply-chain dashboards-check engines-check
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --verbose > /dev/null || $(BIN)/lint-imports

# A licence that is not allowed fails. A missing network or index only prints a warning.
supply-chain: $(STAMP)
	@$(MAKE) --no-print-directory $(TOOLS_STAMP) || echo "== supply chain: NOT CHECKED, $(TOOLS_LOCK) could not be installed"
	@test ! -e $(TOOLS_STAMP) || $(BIN)/python $(CHAIN)/licences.py $(TOOLS)/bin/pip-licenses $(BIN)/python
	@test ! -e $(TOOLS_STAMP) || $(BIN)/python $(CHAIN)/audit.py $(TOOLS)/bin/pip-audit $(LOCK) $(TOOLS)/.audited

$(TOOLS_STAMP): $(TOOLS_LOCK)
	@test -x $(TOOLS)/bin/python || $(BIN)/python -m venv $(TOOLS)
	@$(TOOLS)/bin/pip install -qq --disable-pip-version-check --progress-bar off --no-deps -r $(TOOLS_LOCK)
	@touch $(TOOLS_STAMP)

dashboards: $(TOOLS_STAMP) ## generate ops/grafana/dashboards from ops/grafana/generate
	@$(TOOLS)/bin/python ops/grafana/generate

dashboards-check: supply-chain
	@test ! -e $(TOOLS_STAMP) || $(TOOLS)/bin/python ops/grafana/generate --check

alerts: $(STAMP) ## generate ops/k8s/components/alerts from ops/prometheus/rules.yml
	@$(BIN)/python ops/prometheus/for_operator.py

faketime: $(STAMP) ## put Debian's libfaketime, for the faults of clocks, into .venv
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cd $$folder && apt-get download -qq libfaketime \
		&& dpkg -x libfaketime_*.deb . && install -m 644 usr/lib/*/faketime/libfaketimeMT.so.1 $(abspath $(FAKETIME))

# Unpacked, not installed: installing Debian's package would start a server.
promtool: $(STAMP) ## put Debian's promtool, for the tests of the alert rules, into .venv
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cd $$folder && apt-get download -qq prometheus \
		&& dpkg -x prometheus_*.deb . && install usr/bin/promtool $(abspath $(BIN))/promtool
	@told=$$($(BIN)/promtool --version 2>&1) && echo "$$told" | sed -n 1p

release: $(STAMP) $(TOOLS_STAMP) check ## sdist, wheel, SBOM (CycloneDX) and checksums, in dist/; fails on known vulnerabilities
	@$(BIN)/python $(CHAIN)/audit.py $(TOOLS)/bin/pip-audit $(LOCK) $(TOOLS)/.audited --strict
	@$(MAKE) --no-print-directory dist

dist: $(STAMP) $(TOOLS_STAMP) ## the files of `release`, without its checks
	@rm -rf dist && $(TOOLS)/bin/python -m build --no-isolation --outdir dist . > /dev/null
	@$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file dist/presift.cdx.json
	@cd dist && sha256sum * > SHA256SUMS && ls -1

fuzz: $(STAMP) ## 20,000 mutated requests to each service, and what parsers cost while inputs grow (half an hour)
	@$(BIN)/python -m pytest -m faults tests/faults/test_fuzz.py tests/faults/test_costs.py

format: $(STAMP) ## format and fix what can be fixed
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

PROTOC = $(BIN)/python -m grpc_tools.protoc -I protos --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc
CACHE_PROTOC = $(BIN)/python -m grpc_tools.protoc -I protos -I services
protos: $(STAMP) $(TYPESCRIPT_STAMP) ## regenerate the code that protos/ and cache/value.proto describe
	@$(PROTOC) --python_out=services --pyi_out=services --grpc_python_out=services --mypy_grpc_out=quiet:services \
		protos/presift/v1/*.proto
	@$(CACHE_PROTOC) --python_out=services --pyi_out=services services/presift/cache/value.proto
	@cd $(TYPESCRIPT) && $(abspath $(BIN))/buf generate

$(TYPESCRIPT_STAMP): $(TYPESCRIPT)/package-lock.json
	@cd $(TYPESCRIPT) && npm ci --silent --no-audit

# protos/released.binpb is the protocol of the last release. At a release: `buf build protos -o protos/released.binpb`.
protos-check: $(STAMP)
	@$(BIN)/buf lint protos
	@$(BIN)/buf breaking protos --against protos/released.binpb
	@rm -rf $(VENV)/protos && mkdir -p $(VENV)/protos
	@$(PROTOC) --python_out=$(VENV)/protos --pyi_out=$(VENV)/protos --grpc_python_out=$(VENV)/protos \
		--mypy_grpc_out=quiet:$(VENV)/protos protos/presift/v1/*.proto
	@for f in $(VENV)/protos/presift/v1/*; do cmp -s $$f services/presift/v1/$$(basename $$f) \
		|| { echo "services/presift/v1/$$(basename $$f) is stale: run make protos"; exit 1; }; done
	@$(CACHE_PROTOC) --python_out=$(VENV)/protos --pyi_out=$(VENV)/protos services/presift/cache/value.proto
	@for f in $(VENV)/protos/presift/cache/*; do cmp -s $$f services/presift/cache/$$(basename $$f) \
		|| { echo "services/presift/cache/$$(basename $$f) is stale: run make protos"; exit 1; }; done
	@$(MAKE) --silent --no-print-directory $(TYPESCRIPT_STAMP) || echo "== TypeScript client: NOT CHECKED, node or its packages are missing"
	@test ! -e $(TYPESCRIPT_STAMP) || { cd $(TYPESCRIPT) && $(abspath $(BIN))/buf generate -o $(abspath $(VENV))/protos \
		&& diff -rq src/gen $(abspath $(VENV))/protos/src/gen; } || { echo "$(TYPESCRIPT)/src/gen: run make protos"; exit 1; }

bench: demo-models ## run the benchmarks (described in tests/bench/README.md)
	$(BIN)/python tests/bench/draft_scoring.py time --model "$(PRESIFT_HOME)/models/qwen2.5-coder-0.5b-instruct"
	$(BIN)/python tests/bench/draft_scoring.py memory
	$(BIN)/python tests/bench/orchestrator_overhead.py
	$(BIN)/python tests/bench/cache_roundtrip.py

clean: ## remove .venv and Node's output (models in PRESIFT_HOME stay)
	rm -rf $(VENV) $(CLIENTS) $(LOAD) $(INSPECT) $(SUITES) $(LONGLLMLINGUA) $(KVPRESS) $(CLIENTS_NODE)/node_modules $(TYPESCRIPT)/node_modules $(TYPESCRIPT)/dist
