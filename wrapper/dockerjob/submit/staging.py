# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs whose data are copied: STAGE_IN before, STAGE_OUT after COMMAND, with the user's own rights.

The wrapper imports this only for such jobs.  Nothing here is privileged, and the broker has no part in
it but one: it is asked whether it would take the job, before anything is copied.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import shlex
from collections.abc import Iterator, Mapping

from dockerjob_core.errors import (
    DockerjobError,
    RequestError,
    StageInError,
    StageOutError,
    StoppedError,
)

from ..request import CHECK, JobRequest
from . import scratch
from .cli import (
    call_broker,
    check_refusal,
    describe_hosts,
    is_local,
    request_from_environment,
    resolve_jobdir,
    say,
    start_broker,
    terminal_of,
)
from .rsync import Signals, Transfer, copy
from .scratch import Scratch


@dataclasses.dataclass(frozen=True)
class Staging:
    """What the job's variables say.

    Attributes:
        inputs: patterns of STAGE_IN, as absolute paths.
        results: patterns of STAGE_OUT, relative to JOBDIR.
        target: the directory that gets the results, as an absolute path.
    """

    inputs: tuple[str, ...]
    results: tuple[str, ...]
    target: str


@dataclasses.dataclass(frozen=True)
class StagedJob:
    """A job, and the data that are copied for it.

    Attributes:
        request: the job; its JOBDIR is the user's scratch space until the job has a directory there.
        staging: what is copied.
        inputs: the paths that STAGE_IN has been found to name.
        space: where its scratch space is, None if the user has named a JOBDIR that all hosts share.
    """

    request: JobRequest
    staging: Staging
    inputs: tuple[str, ...]
    space: Scratch | None


def main(environment: Mapping[str, str], *, check: bool, stage_out: bool) -> int:
    """Do what the command line says for a job with data; raises as :func:`run_staged`."""
    if check:
        print(describe(environment))
        return 0
    return bring_out_again(environment) if stage_out else run_staged(environment)


def run_staged(environment: Mapping[str, str]) -> int:
    """Run a job with its data: check, copy in, run, copy out, remove the scratch space; return the exit status.

    Raises:
        RequestError: a variable is wrong, or names what is not there; nothing was copied.
        StageInError: the inputs could not be copied.
        StageOutError: COMMAND succeeded, and its results could not be copied.
        StoppedError: a signal ended the copying.
    """
    signals = Signals()
    signals.install()
    job = read_job(environment)
    if refused := would_refuse(job.request):
        return refused
    signals.check()
    prepare_target(job.staging)
    if job.space:
        request = dataclasses.replace(job.request, jobdir=job.space.make(job.request.job_id))
        job = dataclasses.replace(job, request=request)
    try:
        bring_in(job.request.jobdir, job.inputs, signals)
    except DockerjobError as error:
        leave(job, error.exit_status)
        raise
    return run_and_bring_out(job, signals)


def read_job(environment: Mapping[str, str]) -> StagedJob:
    """Read the job and its data from the environment; nothing is made or copied.

    Raises:
        RequestError: a variable is wrong, or names what is not there.
        PolicyError: the user has no scratch space.
    """
    staging = read_staging(environment, os.getcwd())
    jobdir = environment.get("JOBDIR", "").strip()
    local = is_local(jobdir)
    if local:
        staging = of_local(staging, resolve_jobdir(jobdir))
    space = scratch.find() if local or not jobdir else None
    if space and not staging.results:
        raise RequestError(
            "STAGE_OUT is not set, and scratch space does not stay: name the results, e.g. STAGE_OUT='*'"
        )
    request = request_from_environment(
        {**environment, **({"JOBDIR": space.base} if space else {})}, terminal_of(environment)
    )
    job = StagedJob(request, staging, find_inputs(staging.inputs), space)
    check_places(job)
    return job


def of_local(staging: Staging, jobdir: str) -> Staging:
    """Return what is copied for a JOBDIR that only this host has: all that is in it, and by default all back."""
    inputs = (f"{jobdir}/", *staging.inputs)
    return Staging(inputs, staging.results or (".",), staging.target if staging.results else jobdir)


def run_and_bring_out(job: StagedJob, signals: Signals) -> int:
    """Run the job, then bring its results out, also those of a COMMAND that failed.

    COMMAND's own exit status comes before what went wrong with its results.
    """
    try:
        signals.check()
        # Whether sudo lets the user call the broker has been seen: a status like sudo's is COMMAND's.
        status = call_broker(job.request)
    except DockerjobError as error:  # it was not even called
        leave(job, error.exit_status)
        raise
    # What came meanwhile was the job's, and the broker has it.
    signals = Signals()
    signals.install()
    try:
        bring_out(job.request.jobdir, job.staging, signals, complete=not status)
    except DockerjobError as error:
        if not status:
            raise
        say(str(error))
        return status
    leave(job, status)
    return status


def describe(environment: Mapping[str, str]) -> str:
    """Say what would be copied, for ``--check``; raises as :func:`read_job`."""
    job = read_job(environment)
    where = f"scratch space below {job.space.base}" if job.space else job.request.jobdir
    out = f"; STAGE_OUT to {job.staging.target}" if job.staging.results else ""
    request = job.request
    named = f"job {request.allocation.job_id}: {request.application} on {describe_hosts(request)}"
    return f"{named}\nSTAGE_IN: {_count(job.inputs)} to {where}{out}"


def bring_out_again(environment: Mapping[str, str]) -> int:
    """Bring results out that have stayed in JOBDIR, without running anything; return 0.

    Raises:
        DockerjobError: as :func:`run_staged`.
    """
    signals = Signals()
    signals.install()
    staging = read_staging({**environment, "STAGE_IN": ""}, os.getcwd())
    if not staging.results:
        raise RequestError("STAGE_OUT is not set; name the results, e.g. STAGE_OUT='*'")
    jobdir = resolve_jobdir(environment.get("JOBDIR", ""))
    check_target(jobdir, staging)
    prepare_target(staging)
    bring_out(jobdir, staging, signals, complete=True)
    return 0


def read_staging(environment: Mapping[str, str], directory: str) -> Staging:
    """Read the variables; relative paths are below *directory*, where the wrapper was called.

    Raises:
        RequestError: one is wrong; the message names it.
    """
    results = tuple(_words(environment, "STAGE_OUT"))
    for pattern in results:
        if os.path.isabs(pattern) or ".." in pattern.split("/"):
            raise RequestError(f"STAGE_OUT: {pattern!r} is not relative to JOBDIR, or has '..' in it")
    target = environment.get("STAGE_OUT_TO", "").strip()
    if target and not results:
        raise RequestError("STAGE_OUT_TO is set, and STAGE_OUT is not; name the results, e.g. STAGE_OUT='*'")
    inputs = (os.path.join(directory, word) for word in _words(environment, "STAGE_IN"))
    return Staging(tuple(inputs), results, os.path.join(directory, target))


def _words(environment: Mapping[str, str], variable: str) -> list[str]:
    """Split a variable at its spaces; quotes keep what has spaces in it together."""
    text = environment.get(variable, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise RequestError(f"{variable}={text[:200]!r}: {error}") from error


def find_inputs(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the paths that STAGE_IN names, each under another last name.

    Raises:
        RequestError: a pattern matches nothing, or two paths would be one in JOBDIR.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        try:
            matches = [*_matches("/", pattern, open_directories=True)]
        except OSError as error:
            raise RequestError(f"STAGE_IN: {pattern}: {error.strerror}") from error
        if not matches and not os.path.isdir(pattern):
            raise RequestError(f"STAGE_IN: there is no {pattern}")
        for path in matches:
            name = os.path.basename(path)
            if found.setdefault(name, path) != path:
                raise RequestError(f"STAGE_IN: {found[name]} and {path} would both be {name} in JOBDIR")
    return tuple(found.values())


def find_results(jobdir: str, patterns: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """Return the paths in JOBDIR that STAGE_OUT names, and the patterns that match nothing.

    Raises:
        StageOutError: JOBDIR or a directory to be searched can't be read, or is not there any more.
    """
    try:
        for pattern in patterns:
            _see_that_all_is_found(jobdir, pattern)
        found = {pattern: [*_matches(jobdir, pattern, open_directories=False)] for pattern in patterns}
    except OSError as error:
        where = error.filename or jobdir
        raise StageOutError(f"STAGE_OUT failed: {where}: {error.strerror}; {_stay(jobdir)}") from error
    paths = dict.fromkeys(path for matches in found.values() for path in matches)
    # All of an empty JOBDIR is nothing, and not missing.
    empty = "." if os.path.isdir(jobdir) else None
    missing = [name for name, matches in found.items() if not matches and os.path.normpath(name) != empty]
    return tuple(paths), missing


def _see_that_all_is_found(root: str, pattern: str) -> None:
    """Raise an OSError for a directory that *pattern* has searched, and that can't be read: glob skips it."""
    if os.path.lexists(os.path.join(root, pattern)):
        return
    searched = pattern
    while searched:
        searched, last = os.path.split(searched)
        if not glob.has_magic(last):
            continue
        inside = glob.iglob(f"{searched}/", root_dir=root, recursive=True) if searched else ("",)
        for path in inside:
            os.scandir(os.path.join(root, path)).close()


def _matches(root: str, pattern: str, *, open_directories: bool) -> Iterator[str]:
    """Yield what a pattern matches, or the one path of that very name.

    ``.`` is all that is in *root*, and with *open_directories* ``DIR/`` is all that is in DIR.
    """
    exact = os.path.lexists(os.path.join(root, pattern))
    for path in [pattern] if exact else sorted(glob.glob(pattern, root_dir=root, recursive=True)):
        plain = os.path.normpath(path)
        if plain == "." or (open_directories and exact and path.endswith("/")):
            for name in sorted(os.listdir(os.path.join(root, plain))):
                yield os.path.normpath(os.path.join(plain, name))
        else:
            yield plain


def check_places(job: StagedJob) -> None:
    """See that the data can be copied, and nothing into itself.

    Raises:
        RequestError: that can't be.
    """
    jobdir = job.request.jobdir
    if not os.access(jobdir, os.W_OK | os.X_OK) and (job.inputs or job.space):
        raise RequestError(f"JOBDIR={jobdir}: you may not write there")
    for path in job.inputs:
        if _is_below(jobdir, path):
            raise RequestError(f"STAGE_IN: {path} can't be copied into JOBDIR={jobdir}, which it holds")
        if not job.space and os.path.dirname(os.path.realpath(path)) == jobdir:
            raise RequestError(f"STAGE_IN: {path} is in JOBDIR already; name what has to be copied")
    if not job.space:
        check_target(jobdir, job.staging)


def check_target(jobdir: str, staging: Staging) -> None:
    """See that results are not copied into the directory that they are in.

    Raises:
        RequestError: they would be.
    """
    if staging.results and _is_below(staging.target, jobdir):
        raise RequestError(
            f"STAGE_OUT_TO={staging.target} is JOBDIR, or lies in it, where the results are already; "
            "name another directory, or unset STAGE_OUT"
        )


def _is_below(path: str, directory: str) -> bool:
    real, above = os.path.realpath(path), os.path.realpath(directory)
    return os.path.commonpath((real, above)) == above


def would_refuse(request: JobRequest) -> int:
    """Ask the broker whether it would take the job; return the exit status if not, and it has said why.

    Raises:
        ConfigError: there is no sudo, or it refuses.
    """
    with start_broker() as broker:
        broker.communicate(CHECK + request.to_json())
    return check_refusal(broker.returncode)


def prepare_target(staging: Staging) -> None:
    """Make the directory that gets the results.

    Raises:
        RequestError: it can't be made, or not written to.
    """
    if not staging.results:
        return
    try:
        os.makedirs(staging.target, exist_ok=True)
    except OSError as error:
        raise RequestError(f"STAGE_OUT_TO={staging.target}: {error.strerror}") from error
    if not os.access(staging.target, os.W_OK | os.X_OK):
        raise RequestError(f"STAGE_OUT_TO={staging.target}: you may not write there")


def bring_in(jobdir: str, inputs: tuple[str, ...], signals: Signals) -> None:
    """Copy the inputs into JOBDIR.

    Raises:
        StageInError: it failed; COMMAND is not to be started.
        StoppedError: a signal ended it.
    """
    if not inputs:
        return
    say(f"STAGE_IN: {_count(inputs)} to {jobdir}")
    failed = copy(Transfer("STAGE_IN", "/", inputs, jobdir, keep_paths=False, follow=True), signals)
    if failed:
        raise StageInError(f"STAGE_IN failed: {failed}; COMMAND was not started")


def bring_out(jobdir: str, staging: Staging, signals: Signals, *, complete: bool) -> None:
    """Copy the results out of JOBDIR.

    Raises:
        StageOutError: it failed, or, if they should be *complete*, one is missing; all stays where it is.
        StoppedError: a signal ended it, with the same words on standard error.
    """
    names, missing = find_results(jobdir, staging.results)
    absent = f"nothing in JOBDIR matches {missing[0]}" if missing else ""
    failed = ""
    try:
        if names:
            say(f"STAGE_OUT: {_count(names)} from {jobdir} to {staging.target}")
            transfer = Transfer("STAGE_OUT", jobdir, names, staging.target, keep_paths=True, follow=False)
            failed = copy(transfer, signals)
    except StoppedError:
        say(f"STAGE_OUT is not complete: {_stay(jobdir)}")
        raise
    if failed or (complete and absent):
        raise StageOutError(f"STAGE_OUT failed: {failed or absent}; {_stay(jobdir)}")
    if absent:
        say(f"STAGE_OUT: {absent}")


def _stay(jobdir: str) -> str:
    return (
        f"the results stay in {jobdir}; 'hpc_submit_dockerjob --stage-out' with this JOBDIR and the same "
        "STAGE_OUT brings them out"
    )


def leave(job: StagedJob, status: int) -> None:
    """Remove the scratch space of a job that ended with *status*, or say where it stays."""
    if not job.space:
        return
    directory = job.request.jobdir
    if job.space.keeps(status):
        say(f"scratch space stays in {directory}, as this site has it")
    elif failed := scratch.remove(directory):
        say(f"scratch space could not be removed: {failed}")


def _count(paths: tuple[str, ...]) -> str:
    return f"{len(paths)} path{'' if len(paths) == 1 else 's'}"
