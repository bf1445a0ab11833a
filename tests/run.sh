#!/usr/bin/env bash
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# All tests, cheapest first; stops at the first stage that fails. Labs made here are removed.
# What mostly waits runs beside the stage before the one that needs it.
set -euo pipefail
cd "$(dirname "$0")/.."
export ANSIBLE_COLLECTIONS_PATH="$PWD/.build" PATH="$PWD/.venv/bin:$PATH"

logs=$(mktemp -d)
beside=() # process groups

stage() { printf '\n==> [%4d s] %s\n' "$SECONDS" "$*"; }

# start NAME COMMAND...: run it beside the next stages, in a process group of its own.
start() {
  local name=$1
  shift
  setsid "$@" >"$logs/$name" 2>&1 </dev/null &
  beside+=($!)
  printf -v "pid_$name" %s $!
}

# finish NAME: wait for it; what it printed is shown if it failed.
finish() {
  local pid=pid_$1 status=0
  stage "$1, which ran beside this: waiting for its end"
  wait "${!pid}" || status=$?
  tail -n "$([[ $status == 0 ]] && echo 3 || echo 2000)" "$logs/$1"
  return "$status"
}

clean_up() {
  status=$?
  trap '' INT TERM HUP
  for pid in "${beside[@]}"; do
    kill -- "-$pid" 2>/dev/null || continue
    timeout 20 tail --pid="$pid" -f /dev/null || kill -KILL -- "-$pid" || true
  done
  for lab in test molecule; do python lab/lab.py --name "$lab" down >/dev/null 2>&1 || true; done
  rm -rf "$logs"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
trap 'exit 129' HUP

# On a machine that is busy with all of this, a test on real daemons has one more try.  It is listed as
# RERUN at the end of its stage, and is a fault to look into.
run_tests() { pytest -q --reruns 1 --durations 12 "$@"; }

start images python images/build.py
stage "lint (the images are built beside it)"
tests/lint.sh
stage "unit tests"
run_tests tests/unit
finish images
start molecule_cluster_setup tests/molecule.sh cluster_setup
stage "integration tests: real etcd, Open vSwitch, dockerd (molecule's cluster set-up runs beside them)"
run_tests tests/integration
finish molecule_cluster_setup
stage "lab 'test': a cluster for whole jobs"
LAB_NAME=test lab/ensure_cluster.sh
stage "molecule: life of a job"
LAB_NAME=test tests/molecule.sh job
stage "end to end: whole jobs in the lab"
LAB_NAME=test run_tests tests/e2e
stage "security: attacks of ordinary users in the lab"
LAB_NAME=test run_tests tests/security
stage "all tests passed"
