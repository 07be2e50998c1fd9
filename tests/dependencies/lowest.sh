#!/usr/bin/env bash
# Runs the smoke tests with the lowest versions of the direct dependencies that pyproject.toml allows.
# usage: lowest.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/../.."
box=$(mktemp -d); trap 'rm -rf "$box"' EXIT
unset PYTHONPATH
export TFDS_DATA_DIR="${TFDS_DATA_DIR:-$box/tfds}"
"${1:-python3}" -m venv "$box/venv"
python3 -m venv "$box/uv"
"$box/uv/bin/pip" install -q uv
uv() { "$box/uv/bin/uv" "$@"; }
# promise, of tensorflow-datasets, has no wheel; of the others the lowest version that has one counts
uv pip compile -q --python "$box/venv/bin/python" --resolution lowest-direct --extra test \
  --only-binary :all: --no-binary promise pyproject.toml -o "$box/lowest.txt"
uv pip install -q --python "$box/venv/bin/python" -r "$box/lowest.txt"
uv pip install -q --python "$box/venv/bin/python" --no-deps -e .
uv pip freeze --python "$box/venv/bin/python" --exclude-editable
"$box/venv/bin/python" -m pytest -m smoke
