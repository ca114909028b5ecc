# `make serve` and `make test` set everything up themselves; `make help` lists the rest.
PYTHON  ?= python3
COMPOSE ?= docker compose
VENV    := .venv
BIN     := $(VENV)/bin
# Each list of pins is complete, so nothing is resolved: whatever has been released since, every pip does the same.
PINNED  := install -q --disable-pip-version-check --no-deps --require-hashes -r
OURS    := install -q --disable-pip-version-check --no-deps --no-build-isolation
export PATH := $(abspath $(BIN)):$(PATH)
.DEFAULT_GOAL := help

.PHONY: help
help:  ## list what make can do
	@awk -F':.*## ' '/^##@ /{printf "\n%s\n", substr($$0, 5)} /^[a-z -]+:.*## /{split($$1, name, " "); printf "  %-12s %s\n", name[1], $$2}' $(MAKEFILE_LIST)

# What doesn't come from pip: `need-` ends before anything else has run, `want-` says what will be left out.
brings-cc         = apt-get install gcc libc6-dev (for tests of a clock that jumps)
brings-chromium   = apt-get install chromium (for tests of the page)
brings-docker     = https://docs.docker.com/engine/install; on Debian as root also: eval "$$(tests/compose/engine.sh)", then COMPOSE=docker-compose
brings-h2load     = apt-get install nghttp2-client (generates load)
brings-ip         = apt-get install iproute2 iptables (for tests with several hosts)
brings-node       = apt-get install nodejs npm (for the test of the Node.js example)
brings-prometheus = apt-get install prometheus (for tests of rules and dashboards)
brings-taskset    = apt-get install util-linux (gives processes their CPUs)
need-%:
	@command -v $* >/dev/null || { printf '%s\n' '$* is missing, and nothing goes without. It comes with: $(brings-$*)' >&2; exit 1; }
want-%:
	@command -v $* >/dev/null || printf '%s\n' '$* is missing, so something will be left out. It comes with: $(brings-$*)' >&2
want-fashion:
	@test -e /usr/share/datasets/fashion-mnist || printf '%s\n' 'Fashion-MNIST is missing, so images that are no digits will be left out.' \
	  'It comes with: apt-get install dataset-fashion-mnist' >&2

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Digits needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

# Three sizes of one environment: what serves, the page beside it, everything.
$(VENV)/.serve: requirements/serve.txt proto/pyproject.toml server/pyproject.toml client/pyproject.toml | $(BIN)/python
	$(BIN)/pip $(PINNED) requirements/serve.txt
	$(BIN)/pip $(OURS) -e proto -e server -e client
	$(BIN)/pip check
	@touch $@

$(VENV)/.web: requirements/web.txt web/pyproject.toml | $(VENV)/.serve
	$(BIN)/pip $(PINNED) requirements/web.txt
	$(BIN)/pip $(OURS) -e web
	$(BIN)/pip check
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(wildcard */pyproject.toml) | $(BIN)/python
	@$(BIN)/python -c 'import sys; sys.exit("Training and tests need Python 3.11 to 3.13, TensorFlow has nothing for " + sys.version.split()[0] + "; remove .venv and name another: make PYTHON=python3.13 ...") if sys.version_info >= (3, 14) else 0'
	$(BIN)/pip $(PINNED) requirements/dev.txt
	$(BIN)/pip $(OURS) -e proto -e server -e client -e web -e export
	$(BIN)/pip check
	@touch $(VENV)/.serve $(VENV)/.web $@

# What little wants and is large: Ray for tests/ray, Jupyter for the notebook.
$(VENV)/.ray $(VENV)/.notebook: $(VENV)/.%: requirements/%.txt | $(VENV)/.dev
	$(BIN)/pip $(PINNED) $<
	$(BIN)/pip check
	@touch $@

# Triton's load generator, for tests/e2e/test_perf_analyzer.py, apart from the tritonclient of the environment. On Linux,
# x86-64; it also wants apt-get install libb64-0d.
$(VENV)/perf_analyzer: requirements/perf-analyzer.txt | $(BIN)/python
	$(BIN)/pip $(PINNED) $< --target $@ --upgrade
	@touch $@

##@ Use
.PHONY: serve
serve: $(VENV)/.serve  ## serve the shipped models on 127.0.0.1:50051 (ARGS="--port 6000" for other settings)
	$(BIN)/digits-server $(ARGS)

.PHONY: web
web: $(VENV)/.web  ## serve the page to draw on at http://127.0.0.1:8080, beside `make serve` (ARGS="--port 8000")
	$(BIN)/digits-web $(ARGS)

##@ Train
RECIPE ?= ann-dropout
OUT    ?= out/$(RECIPE)/1
MODEL  ?= models/digits-mlp/3

.PHONY: train
train: $(VENV)/.dev  ## train a recipe, evaluate, export (RECIPE=digits-mlp, OUT=out/...)
	$(BIN)/digits-export train --recipe $(RECIPE) --out $(OUT) $(ARGS)

.PHONY: report
report: want-fashion $(VENV)/.dev  ## measure a package again, write its report and model card (MODEL=models/digits-cnn/3)
	$(BIN)/digits-export report $(MODEL) $(ARGS)

.PHONY: notebook
notebook: $(VENV)/.notebook  ## open the walk through training and export in Jupyter
	$(BIN)/jupyter notebook export/notebooks/mnist_ann.ipynb $(ARGS)

##@ Load-test
.PHONY: loadtest
loadtest: $(VENV)/.dev  ## drive a server of its own with Locust for 30 s, judged by loadtests/slo.toml (ARGS="--shape ramp -u 64")
	$(BIN)/python loadtests/run.py --users 10 --spawn-rate 10 --run-time 30s $(ARGS)

.PHONY: soak
soak: $(VENV)/.dev  ## the same for long, watching latency and the server's memory (FOR=8h; an hour unless said)
	$(BIN)/python loadtests/run.py --shape soak --users 10 --run-time $(or $(FOR),1h) $(ARGS)

.PHONY: bench capacity
bench capacity: need-h2load need-taskset $(VENV)/.dev  ## measure one core beside its limits; `capacity`: how it grows with load and workers (ARGS="--transports grpcio")
	$(BIN)/python benchmarks/throughput.py $@ $(ARGS)

.PHONY: overload
overload: need-h2load need-taskset $(VENV)/.dev  ## offer a server three times what it can do (ARGS="--seconds 10")
	$(BIN)/python benchmarks/overload.py $(ARGS)

.PHONY: bench-soak
bench-soak: need-h2load need-taskset $(VENV)/.dev  ## latency at half load, and memory after many calls (ARGS="--seconds 600")
	$(BIN)/python benchmarks/soak.py $(ARGS)

##@ Containers
.PHONY: image build
image build: need-docker  ## build the container images
	$(COMPOSE) --profile load build

.PHONY: up
up: need-docker  ## start servers, Envoy, page, Prometheus and Grafana in containers (PROFILE="--profile load" adds Locust)
	$(COMPOSE) $(PROFILE) up --build --detach --wait $(ARGS)
	@for it in "envoy 50051 gRPC" "web 8080 page" "prometheus 9090 Prometheus" "grafana 3000 Grafana" "locust 8089 Locust"; do \
	  set -- $$it; at=$$($(COMPOSE) --profile load port $$1 $$2 2>/dev/null) && printf '%-12s%s\n' "$$3" \
	    "$$([ $$3 = gRPC ] || printf http://)$$at"; \
	done

.PHONY: down
down: need-docker  ## stop the containers; what Prometheus has collected stays
	$(COMPOSE) --profile load down

##@ Develop
.PHONY: install sync
install sync: $(VENV)/.dev  ## install everything: runtime, training, checks

.PHONY: test
test: want-chromium want-prometheus want-h2load want-ip want-cc want-node $(VENV)/.dev $(VENV)/.ray  ## run all tests (ARGS="-k batcher" for some)
	$(BIN)/pytest --numprocesses 3 --dist loadscope --no-loadscope-reorder $(ARGS)

.PHONY: check
check: lint types  ## everything CI checks; the generated code is compared by a test
	$(MAKE) test ARGS="--cov --cov-report=term $(ARGS)"

.PHONY: format fmt
format fmt: $(VENV)/.dev  ## format the code and fix what can be fixed
	$(BIN)/ruff format -q .
	$(BIN)/ruff check -q --fix .

.PHONY: lint
lint: $(VENV)/.dev  ## check format, lint and the public contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd proto && ../$(BIN)/buf lint

.PHONY: types
types: $(VENV)/.dev  ## check types
	$(BIN)/mypy
	for each in loadtests benchmarks deploy/ray; do $(BIN)/mypy --config-file= --cache-dir=.mypy_cache/$$each --ignore-missing-imports --follow-imports=silent $$each/*.py || exit 1; done   # Locust has no types, Ray is not everywhere

.PHONY: proto
proto: $(VENV)/.dev  ## regenerate the modules from the .proto files
	proto/generate.sh

.PHONY: requirements
requirements: $(VENV)/.dev  ## pin requirements/*.txt anew from the pyproject files (ARGS=--upgrade for newer releases)
	requirements/compile.sh $(ARGS)

# What the server's image holds, apart from Debian: installed anew, for these tell what is installed, not what is asked for.
out/supply/.venv: requirements/server.txt | $(BIN)/python
	rm -rf $@ && $(PYTHON) -m venv $@
	$@/bin/pip $(PINNED) $<
	$@/bin/pip check
	$@/bin/pip uninstall -q -y hatchling editables pathspec pluggy tomlkit trove-classifiers setuptools pip

.PHONY: sbom
sbom: $(VENV)/.dev out/supply/.venv  ## list what the server is made of: out/supply/sbom.cdx.json (CycloneDX), licences.md
	$(BIN)/cyclonedx-py environment out/supply/.venv --pyproject server/pyproject.toml --output-reproducible -o out/supply/sbom.cdx.json
	$(BIN)/pip-licenses --python out/supply/.venv/bin/python --with-urls --format=markdown --output-file out/supply/licences.md \
	  --partial-match --allow-only="MIT;BSD;Apache;PSF"

.PHONY: audit
audit: $(VENV)/.dev  ## look the pinned packages up among known vulnerabilities; fails where the advisories can't be had
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements/server.txt

.PHONY: fuzz
fuzz: $(VENV)/.dev  ## attack servers of both transports for ten minutes (ARGS="--seconds 3600 --seed 7")
	$(BIN)/python tests/security/fuzz.py $(ARGS)

.PHONY: clean
clean:  ## remove caches and figures; what was trained (out/) and installed (.venv/) stays
	rm -rf out/supply loadtests/out benchmarks/out .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -r {} +
