# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof of an allocation: what the batch system says of the job, not what its environment says.

Each adapter knows what to ask and how to read the answer; here it is asked, and its record held
against the claim.
"""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Collection, Mapping

import tenacity
from dockerjob_core.allocation import Allocation, is_one_of
from dockerjob_core.errors import BatchError, PolicyError
from dockerjob_core.schedulers.base import Answer, BatchRecord, BatchSystem, Phase

from ..config import SystemSettings

PATIENCE = 10.0
"""Seconds in which a job that has started must be called running; daemons tell each other with delay."""

RUNNING: frozenset[Phase] = frozenset(("running",))
HOLDING: frozenset[Phase] = frozenset(("running", "suspended", "held"))


class NotYetRunningError(PolicyError):
    """The batch system has the job, and calls it pending."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """What is to be proven: that the job is this account's, and has these hosts and slots."""

    allocation: Allocation
    user: str
    uid: int


def prove(system: BatchSystem, settings: SystemSettings, claim: Claim) -> BatchRecord:
    """Check that the job runs, is the user's, and holds exactly what is claimed.

    Raises:
        PolicyError: it does not; the message says in what the claim differs.
        BatchError: the batch system could not be asked.
    """
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(NotYetRunningError),
        stop=tenacity.stop_after_delay(PATIENCE),
        wait=tenacity.wait_fixed(1),
        reraise=True,
    )
    return attempts(lambda: _ask_and_check(system, settings, claim, RUNNING))


def confirm(system: BatchSystem, settings: SystemSettings, claim: Claim) -> Phase:
    """Check that a job which was proven still holds its hosts, running or suspended, and say which.

    Raises:
        PolicyError: it does not.
        BatchError: the batch system could not be asked.
    """
    return _ask_and_check(system, settings, claim, HOLDING).phase


def _ask_and_check(
    system: BatchSystem, settings: SystemSettings, claim: Claim, phases: Collection[Phase]
) -> BatchRecord:
    questions = system.questions(claim.allocation, claim.user, settings.plain())
    answers = [ask(system, settings, argv, system.label(claim.allocation)) for argv in questions]
    record = system.record(answers, claim.allocation)
    if record and settings.memory_per:
        record = dataclasses.replace(record, memory_per=settings.memory_per)
    return check(record, system, settings, claim, phases)


def check(
    record: BatchRecord | None,
    system: BatchSystem,
    settings: SystemSettings,
    claim: Claim,
    phases: Collection[Phase],
) -> BatchRecord:
    """Compare the batch system's record with the claim, and return it; the state must mean one of *phases*.

    Raises:
        PolicyError: they differ.
    """
    which = system.label(claim.allocation)
    if record is None:
        raise PolicyError(f"{system.title} has no job {which}")
    # The owner first: of others' jobs nothing more is said.
    check_owner(record, which, claim.user, claim.uid)
    check_state(record, which, system.title, phases)
    check_hosts(record, which, system.title, settings, claim.allocation)
    return record


def ask(system: BatchSystem, settings: SystemSettings, argv: tuple[str, ...], which: str) -> Answer:
    """Run a program of the batch system's that is asked about job *which*.

    Raises:
        BatchError: it can't be started or doesn't answer in time.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=settings.timeout,
            check=False,
            # Nothing of the caller's: batch systems find their configuration by variables.
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", **settings.environment},
        )
    except subprocess.TimeoutExpired as error:
        raise BatchError(
            f"{system.title} did not answer about job {which} in {settings.timeout} s"
        ) from error
    except OSError as error:
        raise BatchError(
            f"can't run {argv[0]}: {error.strerror}; see batch.{system.name} in config.yml"
        ) from error
    return Answer(done.stdout, done.stderr, done.returncode)


def check_owner(record: BatchRecord, which: str, user: str, uid: int) -> None:
    """Compare name and number of the owner, as far as the batch system gives them; it must give one.

    Raises:
        PolicyError: the job is another's.
    """
    named = record.user == user if record.user else record.uid is not None
    if not named or record.uid not in (None, uid):
        raise PolicyError(f"job {which} is not yours, {user}")


def check_state(record: BatchRecord, which: str, title: str, phases: Collection[Phase]) -> None:
    """Check that the state means one of *phases*.

    Raises:
        NotYetRunningError: the job waits.
        PolicyError: it is in another state.
    """
    if record.phase not in phases:
        kind = NotYetRunningError if record.phase == "waiting" else PolicyError
        raise kind(f"job {which} is not running; {title} says {record.state[:80] or 'nothing'}")


def check_hosts(
    record: BatchRecord, which: str, title: str, settings: SystemSettings, allocation: Allocation
) -> None:
    """Compare the hosts and the slots, exactly or as far as they can be known; no launch node is claimed.

    Raises:
        PolicyError: they differ.
    """
    launch_nodes = settings.launch_nodes
    given = {host: count for host, count in record.hosts.items() if not is_one_of(host, launch_nodes)}
    claimed = {host.name: host.slots for host in allocation.hosts}
    if record.counted == "slots":
        same = given == claimed
    else:
        same = given.keys() == claimed.keys() and all(
            count is None or claimed[host] <= count for host, count in given.items()
        )
    if not same or (record.total is not None and sum(claimed.values()) > record.total):
        raise PolicyError(
            f"job {which} was not given what is claimed:"
            f" {title} gave {_text(given, record)}, claimed is {_text(claimed)}"
        )


def _text(hosts: Mapping[str, int | None], record: BatchRecord | None = None) -> str:
    names = (name if count is None else f"{name}:{count}" for name, count in sorted(hosts.items()))
    text = " ".join(names) or "no host"
    return f"{text}, {record.total} CPUs in all" if record and record.total is not None else text
