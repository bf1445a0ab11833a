# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenPBS hook: what Torque's prologue and epilogue are, for PBS Pro and OpenPBS.

After a job it has the reaper remove what a killed job has left, and returns when that is done;
before a job that is run again it waits for its earlier run.

Runs as:   root, by pbs_mom on each host of the job; it acts on the first one only.
Installed: ``qmgr -c 'create hook dockerjob event="execjob_prologue,execjob_epilogue"'``,
           ``qmgr -c 'import hook dockerjob application/x-python default dockerjob_hook.py'``,
           ``qmgr -c 'set hook dockerjob alarm=200'``.
Fails:     never: the event is accepted whatever happens, and what went wrong is in MoM's log.
Sources:   pbs_module(7B) of OpenPBS: ``pbs.event()``, ``job.in_ms_mom()``, ``pbs.logjobmsg()``.

PBS runs a hook with its own Python, which may be old, and without ``__file__``.
"""

import subprocess

import pbs

JOB_GONE = "/opt/dockerjob/integration/job_gone.sh"
ALARM = 180
"""Seconds; less than the hook's alarm, which PBS would take for a failure of the hook."""


def job_gone(job_id, seconds):
    """Wait until nothing is left of the job; return what there is to say of it."""
    try:
        done = subprocess.run(
            [JOB_GONE, "--wait", str(seconds), job_id],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={},
            timeout=ALARM,
            check=False,
        )
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return done.stderr.decode("utf-8", "replace").strip()


def main():
    """Act on the event, and accept it."""
    event = pbs.event()
    job = event.job
    if job.in_ms_mom():
        said = job_gone(str(job.id), 60 if event.type == pbs.EXECJOB_PROLOGUE else 120)
        if said:
            pbs.logjobmsg(job.id, "dockerjob: " + said)
    event.accept()


main()
