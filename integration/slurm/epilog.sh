#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# slurm.conf: Epilog=/etc/slurm/epilog.sh
#
# slurmd runs this as root on every node of a job that has ended, before the node is given to another. It waits until
# the broker has taken the job's container down, and removes what is there after a minute. If it
# fails, the node is drained, and slurmd's log says why.
exec /usr/local/libexec/dockerjob/release_job "$SLURM_JOB_ID"
