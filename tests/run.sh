#!/usr/bin/env bash
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# All tests, cheapest first; stops at the first stage that fails. Labs made here are removed.
set -euo pipefail
cd "$(dirname "$0")/.."
export ANSIBLE_COLLECTIONS_PATH="$PWD/.build" PATH="$PWD/.venv/bin:$PATH"

stage() { printf '\n==> [%4d s] %s\n' "$SECONDS" "$*"; }
clean_up() {
  status=$?
  for lab in test molecule; do python lab/lab.py --name "$lab" down >/dev/null 2>&1 || true; done
  exit "$status"
}
trap clean_up EXIT

stage "lint"
tests/lint.sh
stage "unit tests"
pytest -q tests/unit
stage "images"
python images/build.py
stage "integration tests: real etcd, Open vSwitch, dockerd"
pytest -q tests/integration
stage "molecule: cluster set-up"
tests/molecule.sh cluster_setup
stage "lab 'test': a cluster for whole jobs"
LAB_NAME=test lab/ensure_cluster.sh
stage "molecule: life of a job"
LAB_NAME=test tests/molecule.sh job
stage "end to end: whole jobs in the lab"
LAB_NAME=test pytest -q tests/e2e
stage "security: attacks of ordinary users in the lab"
LAB_NAME=test pytest -q tests/security
stage "all tests passed"
