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

$(VENV)/.dev: requirements/dev.txt export/pyproject.toml | $(VENV)/.serve
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e export
	@touch $@

.PHONY: sync
sync: $(VENV)/.dev  ## install everything: runtime, training, checks

.PHONY: loadtest
loadtest: $(VENV)/.dev  ## drive a server of its own for 30 s with Locust, judged by loadtests/slo.toml (ARGS="-u 50 -t 5m")
	$(BIN)/python loadtests/run.py --users 10 --spawn-rate 10 --run-time 30s $(ARGS)

# With Docker's plug-in, `docker compose` works as well; this one comes with the checks.
COMPOSE := $(BIN)/docker-compose

.PHONY: image
image: $(VENV)/.dev  ## build the container images
	$(COMPOSE) --profile load build

.PHONY: up
up: $(VENV)/.dev  ## start server and Prometheus in containers (ARGS="--profile load" adds Locust)
	$(COMPOSE) $(ARGS) up --build --detach --wait

.PHONY: down
down: $(VENV)/.dev  ## stop the containers; what Prometheus has collected stays
	$(COMPOSE) --profile load down
