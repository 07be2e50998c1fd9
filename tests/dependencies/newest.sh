#!/usr/bin/env bash
# Runs the default tests with the newest releases and pre-releases of the libraries that change most, so that the next
# break is seen early. Every warning is an error in the tests, deprecations among them.
# usage: newest.sh [PYTHON [ARGUMENT OF PYTEST ...]]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}; shift || true
box=$(mktemp -d); trap 'rm -rf "$box"' EXIT
unset PYTHONPATH
export TFDS_DATA_DIR="${TFDS_DATA_DIR:-$box/tfds}"
libraries=(jax flax optax orbax-checkpoint grain av numpy tyro)
"$python" -m venv "$box/venv"
"$box/venv/bin/pip" install -q -e '.[test]'
# their own dependencies are upgraded only where they must be
"$box/venv/bin/pip" install -q --upgrade --pre "${libraries[@]}"
"$box/venv/bin/python" --version
"$box/venv/bin/pip" freeze --exclude-editable | grep -iE "^($(IFS='|'; echo "${libraries[*]}"))=="
"$box/venv/bin/python" -m pytest "$@"
