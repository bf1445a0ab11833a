# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``dockerjob doctor``: is the cluster well, and what to do where it isn't."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

_COLOURS = {"ok": "green", "wrong": "red", "note": "yellow"}


def doctor(
    host: Annotated[
        list[str] | None, typer.Option("--host", metavar="HOST", help="Only this host, instead of all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Look at every part of the cluster, and say what is wrong with it and how to mend that.

    For root and the service account, on a submit host. Exit status 1 if anything is wrong.
    """
    from ..broker.account import become_service_account
    from ..broker.doctor import examine
    from ..config import load_config

    become_service_account()
    findings = examine(load_config(), tuple(host or ()))
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        table = Table("", "where", "what", "found", "what to do", box=None, pad_edge=False)
        for finding in findings:
            level = f"[{_COLOURS[finding.level]}]{finding.level}[/]"
            table.add_row(level, finding.where, finding.what, finding.detail, finding.remedy)
        Console().print(table)
    raise typer.Exit(int(any(finding.level == "wrong" for finding in findings)))
