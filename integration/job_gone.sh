#!/bin/sh
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# job_gone.sh [--wait SECONDS] [JOB ...]: returns when nothing is left of a job's containers, so that
# the batch system gives its slots to the next one only then; JOB is 748, 19[3], 19_3 or 123.server,
# else the job of the environment. What it waits for is done by the broker, the guards and the
# reaper; as root, it also calls the reaper itself (dockerjob gc --job).
#
# Runs as:   the job's user, or root or the service account, on the job's first host, after the job.
#            Before a job it waits for what an earlier run of the same number has left.
# Installed: LSF: POST_EXEC. Grid Engine: epilog, stop_proc_args. PBS: from epilogue and hook.
#            The role submit_host puts it in /opt/dockerjob/integration.
# Fails:     never: its exit status is 0 also if the tool isn't there, refuses, or does not answer, or
#            if SECONDS (120) are over; the last is said on standard error.
# Sources:   IBM, "Environment variables set for job execution": LSB_JOBINDEX is 0 outside arrays; a
#            job of OpenLava 4.0 has all of its user's variables after its end, too. Grid Engine
#            8.1.9, sge_pe(5): same environment as the job. Torque 6.1, "Prologue and Epilogue
#            Scripts": the job id is the first argument, the environment empty.
#
# The environment may be the user's. What is run gets none of it, and only numbers are read from it.
set -u
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH

ANSWER=30 # seconds for one answer; gc gets twice that

root=/opt/dockerjob
case $0 in /*/integration/job_gone.sh)
  [ -x "${0%/integration/*}/bin/dockerjob" ] && root=${0%/integration/*} ;;
esac

is_number() {
  case $1 in '' | *[!0-9]*) false ;; *) [ ${#1} -le 18 ] ;; esac
}

# Print the job that the environment says; the first batch system that is there.
job_of_environment() {
  if [ -n "${LSB_JOBID:-}" ]; then
    case ${LSB_JOBINDEX:-0} in 0) echo "$LSB_JOBID" ;; *) echo "${LSB_JOBID}_$LSB_JOBINDEX" ;; esac
  elif [ -n "${SLURM_JOB_ID:-}" ]; then
    echo "$SLURM_JOB_ID"
  elif [ -n "${SGE_TASK_ID:-}" ]; then
    case $SGE_TASK_ID in undefined) echo "${JOB_ID:-}" ;; *) echo "${JOB_ID:-}_$SGE_TASK_ID" ;; esac
  else
    echo "${PBS_JOBID:-}"
  fi
}

# Print the job id of dockerjob for a batch system's name of a job; fail if it is none.
job_id_of() {
  id=${1%%.*}
  case $id in *'[]') id=${id%'[]'} ;; *'['*']') id=${id%']'} id=${id%'['*}_${id##*'['} ;; esac
  case $id in
    *_*) is_number "${id%%_*}" && is_number "${id#*_}" ;;
    *) is_number "$id" ;;
  esac && echo "$id"
}

# Run dockerjob with a time limit and nothing of the environment.
dockerjob() {
  seconds=$1
  shift
  env -i PATH="$PATH" LC_ALL=C.UTF-8 timeout -k 5 "$seconds" "$root/bin/dockerjob" "$@" \
    </dev/null >/dev/null 2>&1
}

# Whether something is left of the job, or may be: etcd did not answer. If so, root has it removed.
may_be_left() {
  dockerjob "$ANSWER" show "$1" --json
  # 124: no answer in time; 211: etcd gave none. All else but 0 is an answer: there is no such job
  # (201), or whoever this runs as may not ask, and would learn nothing by asking again.
  case $? in 0 | 124 | 211) ;; *) return 1 ;; esac
  [ "$(id -u)" -ne 0 ] || dockerjob $((2 * ANSWER)) gc --job "$1"
  return 0
}

wait=120
if [ "${1:-}" = --wait ]; then
  is_number "${2:-}" && wait=$2
  shift $(($# < 2 ? $# : 2))
fi
[ -x "$root/bin/dockerjob" ] || exit 0
job=$(job_id_of "${1:-$(job_of_environment)}") || exit 0

end=$(($(date +%s) + wait))
pause=1
while may_be_left "$job"; do
  left=$((end - $(date +%s)))
  if [ "$left" -le 0 ]; then
    echo "job_gone: after $wait s job $job still has something on its hosts; the reaper goes on" >&2
    break
  fi
  sleep $((pause < left ? pause : left))
  pause=$((pause < 8 ? 2 * pause : pause))
done
exit 0
