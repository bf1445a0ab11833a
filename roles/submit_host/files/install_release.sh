#!/usr/bin/env bash
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# install_release.sh PYTHON: runs in the unpacked release and makes it a virtual environment.
# A release is never changed afterwards, so jobs that run keep the code they began with.
set -euo pipefail
cd "$(dirname "$0")"
release=$PWD python=$1
umask 022

"$python" -m venv --without-pip .
# ensurepip would take longer than all else; the wheels install with the system's pip.
"$python" -m pip --python "$release/bin/python" install --quiet --disable-pip-version-check \
  --no-index --no-deps --no-warn-script-location wheels/*.whl
# Users run this but can't write here, so nobody would ever keep compiled collections.
bin/python -m compileall -q ansible_collections
rm -r wheels
touch .installed

# Releases that no job can still be running.
find .. -mindepth 1 -maxdepth 1 -mtime +60 ! -path "../$(basename "$release")" -exec rm -rf {} +
