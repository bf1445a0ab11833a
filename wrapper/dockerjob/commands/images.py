# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``dockerjob images``: is an image fit for jobs?"""

from __future__ import annotations

from typing import Annotated

import typer
from dockerjob_core import names
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Application images.")

_COLOURS = {"ok": "green", "missing": "red", "note": "yellow"}


@app.callback()
def _root() -> None:
    """Application images."""


@app.command("check")
def check(
    image: Annotated[str, typer.Argument(help="Name or id of an image on this host.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    docker_host: Annotated[str | None, typer.Option(help="Docker daemon, unix:///path.")] = None,
    infra: Annotated[
        str, typer.Option(help="Infrastructure that an image without the layer gets.")
    ] = names.INFRA_HOST,
) -> None:
    """Say what IMAGE lacks to run jobs; exit status 1 if anything is missing.

    Needs access to Docker, so it is for those who build images.
    """
    from ..images import as_json, check_image

    findings = check_image(image, docker_host, infra)
    if json:
        print(as_json(findings))
    else:
        table = Table("", "what", "found", "what to do", box=None, pad_edge=False)
        for finding in findings:
            colour = _COLOURS[finding.level]
            level = f"[{colour}]{finding.level}[/{colour}]"
            table.add_row(level, finding.name, finding.detail, finding.remedy)
        Console().print(table)
    raise typer.Exit(int(any(finding.level == "missing" for finding in findings)))
