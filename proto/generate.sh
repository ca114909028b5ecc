#!/usr/bin/env bash
# Writes the Python modules of every .proto under OUT (default: beside their .proto).
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-.}
PATH="$PWD/../.venv/bin:$PATH"
mapfile -t protos < <(find . -name '*.proto' -printf '%P\n' | sort)
python -m grpc_tools.protoc --proto_path=. --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" "${protos[@]}"
