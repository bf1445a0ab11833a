#!/bin/sh
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# prolog.sh: removes at once what an earlier run of a requeued job has left on this node: after a power
# cut, for example, when there was no epilog.
#
# Runs as:   root, by slurmd, on all nodes of a job before it begins.
# Installed: slurm.conf, Prolog= this file's path on the nodes, such as /etc/slurm/prolog.sh, and
#            PrologFlags=Alloc. Needs the role job_host, which installs release_job.
# Fails:     the node is drained, and the job queued again.
# Sources:   Slurm 22.05, "Prolog and Epilog Guide", and runs of it.
exec /usr/local/libexec/dockerjob/release_job "$SLURM_JOB_ID" 0
