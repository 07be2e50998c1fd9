#!/usr/bin/env bash
# Prints "VERSION PATH" of one CPython of each minor version from 3.11 on, but for that of python3: those of pyenv, and
# python3.12, python3.13, ... on the PATH.
set -euo pipefail
{
  pyenv root 2>/dev/null | while read -r root; do ls "$root"/versions/*/bin/python3; done || true
  compgen -c python3. | grep -xE 'python3\.[0-9]+' || true
} | while read -r python; do
  # pyenv's shims of versions that are not active fail; free-threaded builds and pre-releases are passed over
  "$python" -c '
import sys, sysconfig
version = sys.version_info
if version >= (3, 11) and version.releaselevel == "final" and not sysconfig.get_config_var("Py_GIL_DISABLED"):
    print(f"{version.major}.{version.minor}", sys.executable)
' </dev/null 2>/dev/null || true
done | sort -t. -k2,2n -u | awk -v default="$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')" '$1 != default'
