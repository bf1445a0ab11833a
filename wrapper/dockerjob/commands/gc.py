# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``dockerjob gc``: remove what dead jobs have left."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer
from dockerjob_core.errors import HostError, KvsError

if TYPE_CHECKING:
    from dockerjob_core.jobtree import JobTree
    from dockerjob_core.kvs import Kvs

    from ..broker.reaper import Reaped
    from ..config import Config

INTERVAL = 300.0
"""Seconds after which ``--watch`` looks whether or not something has ended: unclean hosts may be back."""

RETRY = 10.0
"""Seconds until ``--watch`` tries again what could not be removed, or asks an etcd that was away."""


def gc(
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay, and remove what is left of a job as soon as it has died.")
    ] = False,
    dead: Annotated[
        list[str] | None,
        typer.Option(
            "--dead", metavar="HOST", help="This host is gone for good; don't wait until it is clean."
        ),
    ] = None,
    job: Annotated[
        list[str] | None, typer.Option("--job", metavar="JOB", help="Only this job, if it is dead.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one document per job.")] = False,
) -> None:
    """Remove what is left of jobs that nobody leads any more: their lease in etcd has ended.

    Containers, ports and files go on every host of such a job, then its keys. Its network is free
    again only when every host is known to be clean; a host that never comes back is declared dead
    with --dead. Jobs that run are never touched. Run it as root or as the service account; exit
    status 210 if a host could not be cleaned.
    """
    from ..broker.account import become_service_account
    from ..config import load_config

    become_service_account()
    config = load_config()
    if watch:
        _watch(config, frozenset(dead or ()), as_json)
    with config.etcd.connect() as kvs:
        if dry_run:
            _show_dead(kvs, as_json)
            return
        from ..broker.reaper import collect

        results = collect(
            kvs, config, frozenset(dead or ()), frozenset(job or ()), lambda one: _print(one, as_json)
        )
    left = [result for result in results if not result.done]
    if left:
        raise HostError(
            f"{len(left)} of {len(results)} dead jobs could not be removed from all of their hosts"
        )
    if not results and not as_json:
        print("nothing to remove")


def _watch(config: Config, dead: frozenset[str], as_json: bool) -> None:
    """Reap for ever; an etcd that is away is waited for."""
    from ..broker.reaper import SignOfLife, collect, wait_for_an_end

    while True:
        try:
            with config.etcd.connect() as kvs:
                sign = SignOfLife(kvs)
                while True:
                    sign.give()
                    results = collect(kvs, config, dead, progress=lambda one: _print(one, as_json))
                    wait_for_an_end(kvs, INTERVAL if all(one.done for one in results) else RETRY, sign)
        except KvsError as error:
            print(f"dockerjob: {error}", file=sys.stderr, flush=True)
            time.sleep(RETRY)


def _show_dead(kvs: Kvs, as_json: bool) -> None:
    from ..broker.reaper import dead_jobs

    for tree in dead_jobs(kvs):
        print(
            json.dumps(_as_dict(tree))
            if as_json
            else f"job {tree.job_id} is dead; on {', '.join(tree.hosts)}"
        )


def _as_dict(tree: JobTree) -> dict[str, object]:
    return {"job_id": tree.job_id, "user": tree.record.get("user"), "hosts": list(tree.hosts)}


def _print(result: Reaped, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.as_dict()), flush=True)
        return
    print(f"job {result.job_id}: {'removed' if result.done else 'not removed'}", flush=True)
    for host, reason in result.unclean.items():
        print(f"  {host}: {reason}", flush=True)
    for host in result.given_up:
        print(f"  {host}: declared dead, not asked", flush=True)
