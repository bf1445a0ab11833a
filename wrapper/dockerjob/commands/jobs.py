# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``dockerjob jobs``, ``show`` and ``logs``: they ask the broker, as a submit script does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from dockerjob_core.errors import BatchError, ConfigError, DockerjobError
from rich.console import Console
from rich.table import Table

from ..query import Query
from ..request import SERVICE_ACCOUNT, SUDO

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="The batch system's number; 19_3 in an array.")
]


class RefusedError(DockerjobError):
    """The broker has said why, on standard error; only its exit status is left to pass on."""

    def __init__(self, status: int) -> None:
        """Keep the broker's exit status."""
        super().__init__("")
        self.exit_status = status


def jobs(as_json: JsonOption = False) -> None:
    """List the container jobs there are now: your own; all of them for root and the site's administrators."""
    found = json.loads(ask(Query("jobs")))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table("job", "user", "application", "hosts", "phase", "since", "ready", box=None, pad_edge=False)
    for job in found:
        ready = f"{job['ready']}/{len(job['hosts'])}"
        row = [
            job["job_id"],
            job["user"],
            job["application"],
            _short(job["hosts"]),
            job["phase"],
            _ago(job["since"]),
        ]
        table.add_row(*row, ready)
    Console().print(table if found else "no jobs")


def show(job: JobArgument, as_json: JsonOption = False) -> None:
    """Say all that is known of JOB: phase, hosts, containers, network, and what has happened so far."""
    found = json.loads(ask(Query("show", job)))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    console = Console(highlight=False)
    facts = Table(box=None, show_header=False, pad_edge=False)
    for name, value in (
        ("job", found["job_id"]),
        ("user", found["user"]),
        ("phase", f"{found['phase']}, since {_ago(found['since'])}"),
        ("application", f"{found['application']}  {found['image']}"),
        ("network", found["network"] or "none"),
        ("broker", f"on {found['broker_host']}"),
        ("began", _time(found["begin"])),
        ("ends by", _time(found["deadline"])),
        ("ready", f"{found['ready']}/{len(found['nodes'])}"),
    ):
        facts.add_row(name, value)
    console.print(facts)
    nodes = Table("container", "host", "address", "ready", box=None, pad_edge=False)
    for node in found["nodes"]:
        nodes.add_row(node["name"], node["host"], node["address"], "yes" if node["ready"] else "no")
    console.print(nodes)
    for event in found["events"]:
        console.print(f"{_time(event['since'])}  {event['phase']}")


def logs(
    job: JobArgument,
    node: Annotated[int, typer.Option(help="Index of the node; COMMAND runs on 0.")] = 0,
    agent: Annotated[
        bool, typer.Option("--agent", help="The log of discovery instead of the output.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Print what a node of JOB has written so far."""
    ask(Query("logs", job, node, agent, follow), capture=False)


def ask(query: Query, *, capture: bool = True) -> bytes:
    """Put *query* to the broker and return its answer; without *capture* it goes straight to the terminal.

    Raises:
        RefusedError: the broker has said no, and why.
        ConfigError: it could not be called.
        BatchError: what it said is no answer.
    """
    broker = str(Path(sys.executable).parent / "dockerjob-broker")
    argv = [SUDO, "-n", "-u", SERVICE_ACCOUNT, "--", broker]
    try:
        done = subprocess.run(
            argv, input=query.to_json(), stdout=subprocess.PIPE if capture else None, check=False
        )
    except OSError as error:
        raise ConfigError(f"can't start {SUDO}: {error.strerror}") from error
    except KeyboardInterrupt:
        raise RefusedError(130) from None
    if done.returncode:
        raise RefusedError(done.returncode if done.returncode > 0 else 128 - done.returncode)
    if capture and not done.stdout:
        raise BatchError("the broker gave no answer")
    return done.stdout or b""


def _short(hosts: list[str]) -> str:
    from ClusterShell.NodeSet import NodeSet  # type: ignore[import-untyped]  # ships no type information

    return str(NodeSet.fromlist(hosts))


def _ago(since: float) -> str:
    if not since:
        return "-"
    seconds = max(0, int(time.time() - since))
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds % 60:02d}s"


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"
