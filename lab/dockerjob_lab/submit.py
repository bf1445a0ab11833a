# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``submit`` and ``kill``: starts a job the way LSF does, until a real batch system is in front.

A running job has a cgroup of its own on its first host, named as LSF 10 names it; it shows
which processes belong to the job, also those that left its process group.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from . import cgroups, host
from .lsf import job as jobs
from .lsf import queues, site, table
from .lsf.job import Account, Job
from .lsf.options import Options, allocate, parse
from .lsf.programs import applications, install
from .model import HEAD, Lab, LabError, LabHost
from .system import CLEAN_ENVIRONMENT, locked, progress, wait_until

LIBEXEC = "/share/lsf/libexec"
FIRST_JOB = 101
JOB_GROUP = re.compile(r"job\.(\d+)\.\d+\.\d+")


def next_number(lab: Lab) -> int:
    """Allot a job number."""
    counter = lab.state / "job_counter"
    with locked(lab.state / "job_counter.lock"):
        number = int(counter.read_text()) + 1 if counter.exists() else FIRST_JOB
        new = counter.with_name("job_counter.new")
        new.write_text(str(number))
        new.replace(counter)
    return number


def account(each: LabHost, name: str) -> Account:
    """Look *name* up on the host; root is no user of a batch system."""
    etc = Path(f"/proc/{host.required_pid(each)}/root/etc")
    groups = {line.split(":")[2]: line.split(":")[0] for line in (etc / "group").read_text().splitlines()}
    for line in (etc / "passwd").read_text().splitlines():
        fields = line.split(":")
        if fields[0] == name and fields[2] != "0":
            uid, gid = int(fields[2]), int(fields[3])
            return Account(name, uid, gid, groups.get(fields[3], fields[3]), fields[5], fields[6])
    raise LabError(
        f"host {each.name} has no ordinary user {name!r}; playbooks/lab_up.yml makes alice and bob"
    )


def _hosts(lab: Lab, options: Options, wanted: str | None) -> list[str]:
    names = wanted.split(",") if wanted else list(options.hosts) or [each.name for each in lab.hosts[1:]]
    for name in names:
        lab.host_named(name)
    if len(set(names)) != len(names):
        raise LabError(f"a host is named twice: {','.join(names)}")
    return names


def make_job(
    lab: Lab,
    script: str,
    user: str,
    hosts: str | None,
    directory: str | None,
    number: int | None = None,
    index: int = 0,
) -> Job:
    """Turn a script into a job with hosts and a number: the next one, or *number*, as after a requeue."""
    options = parse(script)
    install(_share(lab.hosts[-1]))  # a host that has the account of the broker
    allocation = allocate(options, _hosts(lab, options, hosts))
    who = account(lab.host_named(allocation[0][0]), user)
    options, variables = _run_esubs(lab.host_named(HEAD), options, who)
    profile = site.read_profile(options.application, applications()) if options.application else None
    return Job(
        number=number or next_number(lab),
        index=index,
        options=options,
        allocation=allocation,
        account=who,
        directory=directory or who.home,
        submit_host=HEAD,
        stamp=int(time.time()),
        job_starter=profile.job_starter if profile else "",
        post_exec=profile.post_exec if profile else "",
        variables=variables,
    )


def _share(each: LabHost) -> Path:
    return Path(f"/proc/{host.required_pid(each)}/root/share")


def _run_esubs(submit_host: LabHost, options: Options, who: Account) -> tuple[Options, Mapping[str, str]]:
    """Run the esubs of ``-a`` as the user, on the host of submission."""
    if not options.esub:
        return options, {}
    become = ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", "--init-groups"]
    clean = ["env", "-i", "PATH=/usr/bin:/bin", f"{LIBEXEC}/esubs"]
    done = subprocess.run(
        [*host.entering(submit_host), "--", *become, *clean],
        input=json.dumps(dataclasses.asdict(options)),
        capture_output=True,
        text=True,
        env=CLEAN_ENVIRONMENT,
        cwd="/",
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise LabError(done.stderr.strip())
    changed, variables = json.loads(done.stdout)
    return jobs.options_of(changed), variables


def _post_exec(first: LabHost, job: Job, description: Mapping[str, object], status: int) -> None:
    """Run POST_EXEC, which is no part of the job: bkill doesn't reach it."""
    if job.post_exec:
        _start(first, first.system_cgroup, {**description, "status": status}).wait()


def _start(first: LabHost, cgroup: str, description: Mapping[str, object]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*host.entering(first), "--", f"{LIBEXEC}/res"],
        stdin=subprocess.PIPE,
        text=True,
        env=CLEAN_ENVIRONMENT,
        # A job has no terminal; that one's signals are for this program, which passes them on.
        start_new_session=True,
        preexec_fn=lambda: cgroups.join(cgroup),
    )
    if process.stdin is None:
        raise LabError("no pipe to the job")
    json.dump(description, process.stdin)
    process.stdin.close()
    return process


def submit(
    lab: Lab, job: Job, script: str, extra: Mapping[str, str], *, spool: bool, terminal: bool = False
) -> int:
    """Run *job* and return its exit status; INT and TERM to this program end the job.

    With *terminal* the job gets this program's, as with ``bsub -Is``.
    """
    if terminal:
        _leave_terminal()
    first = lab.host_named(job.allocation[0][0])
    cgroup = f"{first.cgroup}/lsf/{lab.name}/job.{job.number}.{os.getpid()}.{job.stamp}"
    progress(
        f"job {job.number} of {job.account.name} starts on {jobs.environment(job)['LSB_MCPU_HOSTS'].strip()}"
    )
    cgroups.create(cgroup)
    share = _share(first)
    which = (job.number, job.index, job.account.name, job.allocation)
    tell = partial(table.record, share, *which, limits=job.options.limits, shown=_shown(job))
    tell("RUN")
    description = {**jobs.description(job, script, extra, spool=spool), "terminal": terminal}
    status = 1
    try:
        status = _wait(_start(first, cgroup, description), cgroup)
        # With JOB_INCLUDE_POSTPROC=Y the job runs, for LSF, until this is over.
        _post_exec(first, job, description, status)
    finally:
        with contextlib.suppress(OSError):  # the lab may have gone down meanwhile
            tell("EXIT" if status else "DONE")
        # What a job leaves running is LSF's to find; it keeps its cgroup then.
        if not cgroups.processes(cgroup):
            cgroups.remove(cgroup)
    progress(f"job {job.number} ended with exit status {status}")
    return status


def _leave_terminal() -> None:
    """Let go of the controlling terminal; the session's leader gets SIGHUP for that (tty_ioctl(4))."""
    if not os.isatty(1) or os.getsid(0) != os.getpid():
        raise LabError("--pty needs a terminal of its own: script -qc 'exec lab.py ...' /dev/null")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    fcntl.ioctl(1, termios.TIOCNOTTY)


def _shown(job: Job) -> dict[str, str]:
    """What ``bjobs`` shows besides; LSF cuts names at its own length."""
    shown = {"QUEUE": job.options.queue, "JOB_NAME": job.name[:4094], "FROM_HOST": job.submit_host}
    return {**shown, "SUBMITTED": str(job.stamp)}


def _wait(process: subprocess.Popen[str], cgroup: str) -> int:
    def interrupted(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    try:
        process.wait()
    except KeyboardInterrupt:
        progress("ending the job: INT, TERM, KILL")
        try:
            terminate(cgroup)
        except KeyboardInterrupt:
            cgroups.kill_all(cgroup)
        process.wait()
    code = process.returncode
    return code if code >= 0 else 128 - code


def _keepers(cgroup: str) -> set[int]:
    """The nsenter of a job, which is outside the host's process namespace and gets no signal of the job's."""
    own = Path("/proc/self/ns/pid").stat().st_ino
    keepers = set()
    for pid in cgroups.processes(cgroup):
        try:
            if Path(f"/proc/{pid}/ns/pid").stat().st_ino == own:
                keepers.add(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return keepers


def send(cgroup: str, number: int) -> None:
    """Send a signal to every process group of the job, as LSF does."""
    groups = set()
    for pid in cgroups.processes(cgroup) - _keepers(cgroup):
        try:
            groups.add(os.getpgid(pid))
        except ProcessLookupError:
            continue
    for group in groups:
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            continue


def terminate(cgroup: str, grace: float = queues.TERMINATE_INTERVAL) -> None:
    """End a job as bkill does: CONT, INT, wait, TERM, wait, KILL."""
    send(cgroup, signal.SIGCONT)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        send(cgroup, number)
        if wait_until(lambda: not cgroups.processes(cgroup) - _keepers(cgroup), grace):
            return
    cgroups.kill_all(cgroup)


def find(lab: Lab, job_number: int) -> str:
    """The cgroup of a running job."""
    hierarchy = cgroups.hierarchies()[0]
    for each in lab.hosts:
        directory = hierarchy / each.cgroup.strip("/") / "lsf" / lab.name
        for entry in sorted(directory.iterdir()) if directory.is_dir() else ():
            matched = JOB_GROUP.fullmatch(entry.name)
            cgroup = f"{each.cgroup}/lsf/{lab.name}/{entry.name}"
            # An earlier run of the same number that was killed has left its own, empty.
            if matched and int(matched[1]) == job_number and cgroups.processes(cgroup):
                return cgroup
    raise LabError(f"job {job_number} is not running in lab {lab.name!r}")


def signal_number(name: str) -> int:
    """Number of a signal given as ``TERM``, ``SIGTERM`` or ``15``."""
    if name.isdecimal() and int(name) in {int(each) for each in signal.Signals}:
        return int(name)
    try:
        return int(signal.Signals["SIG" + name.upper().removeprefix("SIG")])
    except KeyError as error:
        raise LabError(f"no such signal: {name}") from error


def read_script(path: str) -> str:
    """Text of the job script; ``-`` is stdin, as in ``bsub < script``."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text()
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}") from error
