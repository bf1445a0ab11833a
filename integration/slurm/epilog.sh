#!/bin/sh
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# epilog.sh: waits until the broker has taken the job's container on this node down, and removes what
# is there after a minute, so that the node is given to another job only then.
#
# Runs as:   root, by slurmd, on every node of a job that has ended.
# Installed: slurm.conf, Epilog= this file's path on the nodes, such as /etc/slurm/epilog.sh. Needs the
#            role job_host, which installs release_job.
# Fails:     the node is drained, and slurmd's log says why.
# Sources:   Slurm 22.05, "Prolog and Epilog Guide", and runs of it.
exec /usr/local/libexec/dockerjob/release_job "$SLURM_JOB_ID"
