#!/usr/bin/env bash
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The demo: a cluster on this machine, and OpenFOAM's pitzDaily in containers over two of
# its hosts, submitted and watched by alice with the commands of LSF that she knows.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${LAB_NAME:=lab}"
export LAB_NAME ANSIBLE_COLLECTIONS_PATH="$PWD/.build" PATH="$PWD/.venv/bin:$PATH"
examples=/scratch/alice/examples

step() { printf '==> %s\n' "$*"; }
on_node3() { python lab/lab.py --name "$LAB_NAME" exec node3 -- "$@"; }
quietly() { on_node3 runuser -l alice -c "cd $examples && $1"; }
alice() {
  printf '\nalice@node3$ %s\n' "$1"
  quietly "$1"
}

begin=$SECONDS
lab/ensure_cluster.sh
step "the lab's LSF: Slurm beneath, see docs/lab.md"
ANSIBLE_DISPLAY_OK_HOSTS=no ANSIBLE_DISPLAY_SKIPPED_HOSTS=no \
  ansible-playbook -i ".lab/$LAB_NAME/inventory.yml" playbooks/lab_slurm.yml >&2
on_node3 install -d -o alice -g alice /scratch/alice "$examples"
tar -c -C examples . | on_node3 tar -x --no-same-owner -C "$examples"
step "the cluster is ready after $((SECONDS - begin)) s; alice logs in on node3"

alice "bsub -K < pitzdaily_prepare.bsub"
alice "cat pitzdaily.bsub"
said=$(quietly "bsub < pitzdaily.bsub")
printf '\nalice@node3$ bsub < pitzdaily.bsub\n%s\n' "$said"
job=$(sed -n 's/^Job <\([0-9]*\)> .*/\1/p' <<<"$said")

# Until COMMAND writes, or the job is over.
for _ in {1..600}; do
  quietly "bpeek $job" 2>/dev/null | grep -q '^Time = ' && break
  quietly "bjobs -o stat -noheader $job" | grep -q 'DONE\|EXIT' && break
  sleep 0.5
done
alice "bhosts"
alice "bjobs"
alice "/share/dockerjob/bin/dockerjob jobs"
alice "bpeek $job | tail -n 6" || true # it may be over
step "until the job is over, $job has its hosts"
until quietly "bjobs -o stat -noheader $job" | grep -q 'DONE\|EXIT'; do sleep 1; done

alice "bjobs -a $job"
alice "sed '/^The output/,\$d' job-$job.out"
alice "tail -n 4 job-$job.out"
alice "cat job-$job.err"
status=$(quietly "bjobs -o exit_code -noheader $job")
[[ $status != - ]] || status=0

step "the job's exit status is $status; the lab stays up"
cat <<END

  look around    make lab-status
                 .venv/bin/python lab/lab.py exec node1 -- docker ps -a
  be alice       .venv/bin/python lab/lab.py exec node3 -- runuser -l alice
  another job    bsub -I < $examples/mpihello.bsub, as alice
  remove it all  make lab-down
END
exit "$status"
