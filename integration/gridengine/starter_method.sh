#!/bin/sh
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# starter_method.sh COMMAND [ARGUMENT...]: job_starter.sh --if-asked, for Grid Engine.
#
# Runs as:   the job's user, on its first host, in place of the shell, with the job's environment.
# Installed: starter_method in the queue's configuration, by its absolute path.
# Fails:     as job_starter.sh does.
# Sources:   Seen with Grid Engine 8.1.9: starter_method takes a path and no arguments, whatever
#            queue_conf(5) says of variables in it; sge_shepherd looks for a file of that whole name,
#            and the job fails with 27, "searching requested shell".
exec "${0%/gridengine/*}/job_starter.sh" --if-asked "$@"
