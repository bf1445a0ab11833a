#!/bin/sh
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# job_signal.sh suspend|resume|terminate GRACE PID...: controls a batch job by the signals that
# hpc_submit_dockerjob can act on, where the batch system's own can't be caught or would end the
# script before its containers. Only the wrapper gets them. A job without a wrapper gets what the
# batch system would have sent.
#
#   suspend    SIGTSTP: the containers are frozen        without a wrapper: SIGSTOP
#   resume     SIGCONT                                   the same
#   terminate  SIGTERM, and SIGKILL after GRACE seconds  without a wrapper: SIGKILL
#
# Runs as:   the job's user, on the job's first host, with the job's environment.
# Installed: LSF: SUSPEND_CONTROL, TERMINATE_CONTROL, JOB_CONTROLS, with PID... $LSB_JOBPIDS.
#            Grid Engine: suspend_method, resume_method, terminate_method, with $job_pid, the
#            leader of the job's process group.
#            The role submit_host puts it in /opt/dockerjob/integration.
# Fails:     with 1 for arguments that make no sense. A process that is gone is fine.
# Sources:   IBM, lsb.queues, JOB_CONTROLS: /bin/sh -c, as the job's user, standard streams are the
#            null device, LSB_JOBPIDS. Grid Engine 8.1.9, queue_conf(5). All three actions were seen
#            there (qmod -sj, qmod -usj, qdel) and in OpenLava 4.0 (bstop, bresume, bkill). A signal as terminate_method would end a script's
#            shell, and with it the job, whatever its children do.
set -u
PATH=/usr/bin:/bin
export PATH

usage() {
  echo "usage: job_signal.sh suspend|resume|terminate GRACE PID..." >&2
  exit 1
}

# Print the process numbers of the job: those given, and all of the process groups that they lead;
# not this one, wherever the batch system has put it.
members() {
  for pid in $pids; do
    echo "$pid"
    pgrep -g "$pid"
  done | sort -un | grep -vx "$$"
}

# Print those of the job's processes that are wrappers: an argument is its path.
wrappers() {
  for pid in $(members); do
    tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -q '/hpc_submit_dockerjob$' && echo "$pid"
  done 2>/dev/null
}

# Send a signal to each of some processes, which may be gone.
send() {
  number=$1
  shift
  for pid in "$@"; do
    kill -s "$number" "$pid" 2>/dev/null
  done
}

all_gone() {
  for pid in "$@"; do
    kill -s 0 "$pid" 2>/dev/null && return 1
  done
  return 0
}

[ $# -ge 3 ] || usage
action=$1 grace=$2
shift 2
pids=$*
for number in "$grace" "$@"; do
  case $number in '' | *[!0-9]*) usage ;; esac
done
for pid in "$@"; do
  [ "$pid" -gt 1 ] || usage
done

# What is split here are process numbers.
# shellcheck disable=SC2046,SC2086
case $action in
  suspend)
    found=$(wrappers)
    if [ -n "$found" ]; then send TSTP $found; else send STOP $(members); fi
    ;;
  resume) send CONT $(members) ;;
  terminate)
    found=$(wrappers)
    if [ -n "$found" ]; then
      send CONT $found
      send TERM $found
      waited=0
      until all_gone $found || [ "$waited" -ge "$grace" ]; do
        sleep 1
        waited=$((waited + 1))
      done
      # What follows the wrapper in the script has a moment, and so has the script's own end.
      [ "$waited" -ge "$grace" ] || sleep 1
    fi
    send KILL $(members)
    ;;
  *) usage ;;
esac
exit 0
