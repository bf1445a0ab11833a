#!/usr/bin/env bash
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# ansible-test's validate-modules: do DOCUMENTATION and RETURN agree with what a module takes?
# 'ansible-test sanity' downloads a pip of its own from outside the package registries, so the
# validator is called directly, with what it needs from the lock file.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
validator=$(.venv/bin/python -c 'import ansible_test, pathlib; print(pathlib.Path(ansible_test.__path__[0]) / "_util/controller/sanity/validate-modules")')
cd .build/ansible_collections/hpc/dockerjob
export ANSIBLE_COLLECTIONS_PATH="$root/.build" PYTHONPATH="$validator:$root/.build"
# import-before-documentation and the like judge style that ruff judges here already.
"$root/.venv/bin/python" "$validator/validate.py" --format plain --arg-spec --collection ansible_collections/hpc/dockerjob \
  --collection-version 0.1.0 plugins/modules/*.py
