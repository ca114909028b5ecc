# `make serve` and `make test` set everything up themselves; `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
.DEFAULT_GOAL := help

.PHONY: help
help:  ## list what make can do
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Digits needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

# Two environments' worth of packages in one folder: serving needs 10 of them, the checks all.
$(VENV)/.serve: requirements/serve.txt proto/pyproject.toml server/pyproject.toml client/pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/serve.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e proto -e server -e client
	@touch $@

$(VENV)/.web: requirements/web.txt web/pyproject.toml | $(VENV)/.serve
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/web.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e web
	@touch $@

$(VENV)/.dev: requirements/dev.txt export/pyproject.toml | $(VENV)/.serve $(VENV)/.web
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e export
	@touch $@

# Ray and its 80 packages, which tests/ray alone wants.
$(VENV)/.ray: requirements/ray.txt | $(VENV)/.dev
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/ray.txt
	@touch $@

.PHONY: sync
sync: $(VENV)/.dev  ## install everything: runtime, training, checks

.PHONY: serve
serve: $(VENV)/.serve  ## serve the shipped models on 127.0.0.1:50051 (ARGS="--port 6000" for other settings)
	$(BIN)/digits-server $(ARGS)

.PHONY: web
web: $(VENV)/.web  ## serve the page to draw on at http://127.0.0.1:8080, beside `make serve` (ARGS="--port 8000")
	$(BIN)/digits-web $(ARGS)

.PHONY: test
test: $(VENV)/.dev $(VENV)/.ray  ## run all tests (ARGS="-k batcher" for some)
	$(BIN)/pytest --numprocesses 2 --dist loadscope $(ARGS)

.PHONY: fmt
fmt: $(VENV)/.dev  ## format the code and fix what can be fixed
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
	MYPYPATH=tests $(BIN)/mypy --config-file= --cache-dir=.mypy_cache/loadtests --ignore-missing-imports --follow-imports=silent loadtests/*.py   # Locust has no types

.PHONY: proto
proto: $(VENV)/.dev  ## regenerate the modules from the .proto files
	proto/generate.sh

.PHONY: check
check: lint types  ## everything CI checks; the generated code is compared by a test
	$(MAKE) test ARGS="--cov --cov-report=term $(ARGS)"

.PHONY: requirements
requirements: $(VENV)/.dev  ## pin requirements/*.txt anew from the pyproject files
	PATH="$(abspath $(BIN)):$$PATH" requirements/compile.sh

.PHONY: train
train: $(VENV)/.dev  ## train a recipe, evaluate, export (RECIPE=ann-dropout, OUT=out/...)
	$(BIN)/digits-export train --recipe $(or $(RECIPE),ann-dropout) --out $(or $(OUT),out/$(or $(RECIPE),ann-dropout)/1) $(ARGS)

.PHONY: loadtest
loadtest: $(VENV)/.dev  ## drive a server of its own with Locust for 30 s, judged by loadtests/slo.toml (ARGS="--shape ramp -u 64")
	$(BIN)/python loadtests/run.py --users 10 --spawn-rate 10 --run-time 30s $(ARGS)

.PHONY: soak
soak: $(VENV)/.dev  ## the same for long, watching latency and the server's memory (FOR=8h; an hour unless said)
	$(BIN)/python loadtests/run.py --shape soak --users 10 --run-time $(or $(FOR),1h) $(ARGS)

# What the server's image holds, apart from Debian: installed anew, for these tell what is installed, not what is asked for.
out/supply/.venv: requirements/server.txt | $(BIN)/python
	rm -rf $@ && $(PYTHON) -m venv $@
	$@/bin/pip install -q --disable-pip-version-check --require-hashes -r $<
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

COMPOSE ?= docker compose

.PHONY: image
image:  ## build the container images
	$(COMPOSE) --profile load build

.PHONY: up
up:  ## start servers, Envoy, page, Prometheus and Grafana in containers (PROFILE="--profile load" adds Locust)
	$(COMPOSE) $(PROFILE) up --build --detach --wait $(ARGS)
	@for it in "envoy 50051 gRPC" "web 8080 page" "prometheus 9090 Prometheus" "grafana 3000 Grafana" "locust 8089 Locust"; do \
	  set -- $$it; at=$$($(COMPOSE) --profile load port $$1 $$2 2>/dev/null) && printf '%-12s%s\n' "$$3" \
	    "$$([ $$3 = gRPC ] || printf http://)$$at"; \
	done

.PHONY: down
down:  ## stop the containers; what Prometheus has collected stays
	$(COMPOSE) --profile load down

.PHONY: bench
bench: $(VENV)/.dev  ## measure one core beside the limits of the same run; wants h2load and two CPUs (ARGS="--seconds 10")
	$(BIN)/python loadtests/bench.py $(ARGS)

.PHONY: capacity
capacity: $(VENV)/.dev  ## measure how latency grows with load and throughput with workers; wants h2load and two CPUs
	$(BIN)/python loadtests/capacity.py $(ARGS)

.PHONY: overload
overload: $(VENV)/.dev  ## offer a server three times what it can do; wants h2load and two CPUs (ARGS="--seconds 10")
	$(BIN)/python loadtests/overload.py $(ARGS)

.PHONY: bench-sdk
bench-sdk: $(VENV)/.dev  ## measure the Python client beside the generated stub; wants two CPUs
	$(BIN)/python loadtests/sdk_bench.py $(ARGS)

.PHONY: bench-models
bench-models: $(VENV)/.dev  ## measure what callers feel while models are exchanged or tried; wants h2load and two CPUs
	$(BIN)/python loadtests/models_bench.py $(ARGS)
