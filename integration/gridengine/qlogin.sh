# shellcheck shell=sh
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# qlogin.sh: gives the shell of "qlogin" the environment of its job, so that the wrapper finds it.
#
# Runs as:   the user, sourced by login shells (sh, bash, dash, ksh, zsh), where it does nothing
#            unless an ancestor of the shell is a sge_shepherd and no batch system's variable is set.
# Installed: in /etc/profile.d of the execution hosts, as dockerjob_qlogin.sh; dockerjob_spool is
#            execd_spool_dir of "qconf -sconf".
# Fails:     never: without a job, or if its files can't be read, the environment stays as it is.
# Sources:   Grid Engine 8.1.9 with qlogin_command builtin: the shell is sge_shepherd's child and has
#            nothing of the job in its environment. execd keeps that, readable for all, in
#            HOST/active_jobs/JOB.TASK/environment, and sge_shepherd's process id beside it in pid.
#
# What it sets is a claim like all of a job's environment; the broker asks qstat.

dockerjob_spool=/var/spool/gridengine/execd

# Export what the wrapper reads, from the job whose shepherd is an ancestor of this shell.
dockerjob_qlogin() {
  [ -z "${SGE_TASK_ID:-}${LSB_JOBID:-}${SLURM_JOB_ID:-}${PBS_JOBID:-}" ] || return 0
  dockerjob_parent=$$
  dockerjob_name=
  while [ "$dockerjob_name" != sge_shepherd ]; do
    [ "$dockerjob_parent" -gt 1 ] || return 0
    dockerjob_pid=$dockerjob_parent
    [ -r "/proc/$dockerjob_pid/status" ] || return 0
    while read -r dockerjob_key dockerjob_value; do
      case $dockerjob_key in
        Name:) dockerjob_name=$dockerjob_value ;;
        PPid:) dockerjob_parent=$dockerjob_value ;;
      esac
    done <"/proc/$dockerjob_pid/status"
  done
  dockerjob_value=$(uname -n)
  dockerjob_take "$dockerjob_spool/$dockerjob_value/active_jobs" ||
    dockerjob_take "$dockerjob_spool/${dockerjob_value%%.*}/active_jobs" || :
}

# Take the job of shepherd $dockerjob_pid from directory $1.
dockerjob_take() {
  [ -d "$1" ] || return 1
  dockerjob_value=$(grep -lx "$dockerjob_pid" "$1"/*/pid 2>/dev/null) || return 1
  [ -r "${dockerjob_value%/pid}/environment" ] || return 1
  while IFS= read -r dockerjob_line; do
    case $dockerjob_line in
      JOB_ID=* | JOB_NAME=* | PE=* | PE_HOSTFILE=* | HOSTNAME=* | NSLOTS=* | NHOSTS=* | SGE_ROOT=* | SGE_CELL=* | \
        SGE_TASK_ID=* | SGE_TASK_FIRST=* | SGE_TASK_LAST=* | SGE_TASK_STEPSIZE=*)
        export "${dockerjob_line?}" ;;
    esac
  done <"${dockerjob_value%/pid}/environment"
}

dockerjob_qlogin
unset -f dockerjob_qlogin dockerjob_take
unset dockerjob_spool dockerjob_pid dockerjob_name dockerjob_parent dockerjob_key dockerjob_value dockerjob_line
