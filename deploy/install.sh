#!/bin/sh
# Installs Tapewatch into a virtual environment: `make setup`, CI and the images all do it by this one script.
#
#   deploy/install.sh VENV [pip's arguments, e.g. -e '.[dev]']
set -eu
venv=$1
shift
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$(dirname "$0")/../requirements/constraints.txt" "$@"
