#!/usr/bin/env bash
# Runs the smoke tests in a fresh environment of another Python.
# usage: smoke.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/../.."
box=$(mktemp -d); trap 'rm -rf "$box"' EXIT
unset PYTHONPATH
export TFDS_DATA_DIR="${TFDS_DATA_DIR:-$box/tfds}"
"$1" -m venv "$box/venv"
"$box/venv/bin/pip" install -q -e '.[test]'
"$box/venv/bin/python" -m pytest -m smoke
