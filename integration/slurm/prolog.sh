#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# slurm.conf: Prolog=/etc/slurm/prolog.sh, and PrologFlags=Alloc so that it runs on all nodes before the job does
#
# Removes at once what an earlier run of a requeued job has left on this node: after a power cut, for example, when
# there was no epilog. If it fails, the node is drained and the job queued again.
exec /usr/local/libexec/dockerjob/release_job "$SLURM_JOB_ID" 0
