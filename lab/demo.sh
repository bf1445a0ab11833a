#!/usr/bin/env bash
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The demo: a cluster on this machine, and OpenFOAM's pitzDaily in containers over two of
# its hosts, started by the submit script that a user would write.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${LAB_NAME:=lab}"
export LAB_NAME PATH="$PWD/.venv/bin:$PATH"

step() { printf '==> %s\n' "$*"; }
submit() { python lab/lab.py --name "$LAB_NAME" submit "$1" --user alice --hosts node1,node2; }

begin=$SECONDS
lab/ensure_cluster.sh
step "the cluster is ready after $((SECONDS - begin)) s"

step "alice prepares the case: examples/pitzdaily_prepare.bsub"
submit examples/pitzdaily_prepare.bsub

step "alice submits the job: examples/pitzdaily.bsub"
sed -n '/^#BSUB\|^export\|^\//p' examples/pitzdaily.bsub | sed 's/^/    /'
submit examples/pitzdaily.bsub && status=0 || status=$?

step "the job's exit status is $status; the lab stays up"
cat <<END

  look around    make lab-status
                 .venv/bin/python lab/lab.py exec node1 -- docker ps -a
  another job    .venv/bin/python lab/lab.py submit examples/mpihello.bsub --user bob
  remove it all  make lab-down
END
exit "$status"
