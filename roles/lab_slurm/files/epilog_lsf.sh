#!/bin/sh
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# epilog_lsf.sh: for the lab's LSF only. Has the user's report written of a job whose keeper was killed with it.
#
# Runs as:   root, by slurmd, on every node of a job that has ended; what it starts is the user's.
# Fails:     never, a job of another's making is none of its business.
[ -e "/share/lsf/spool/slurm.$SLURM_JOB_ID.json" ] || exit 0
[ "$(stat -c %U "/share/lsf/spool/slurm.$SLURM_JOB_ID.json")" = "$SLURM_JOB_USER" ] || exit 0
timeout 120 runuser -u "$SLURM_JOB_USER" -- /share/lsf/libexec/after "$SLURM_JOB_ID" </dev/null >/dev/null 2>&1
exit 0
