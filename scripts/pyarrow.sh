#!/bin/sh
# Prints a Python that has pyarrow (PyPI), in a virtual environment that is made once below target/; 55 MB, so `make test`
# does without.
set -eu

cd "$(dirname "$0")/.."
venv=target/pyarrow/venv
if [ ! -e "$venv/complete" ]; then
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'pyarrow>=20' >&2
    touch "$venv/complete"
fi
echo "$PWD/$venv/bin/python"
