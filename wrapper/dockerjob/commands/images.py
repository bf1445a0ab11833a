# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``dockerjob images``: is an image fit for jobs?"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from dockerjob_core.errors import DockerjobError

app = typer.Typer(no_args_is_help=True, help="Application images.")


@app.callback()
def _root() -> None:
    """Application images."""


@app.command("check")
def check(
    image: Annotated[str, typer.Argument(help="Name or id of an image on this host.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    docker_host: Annotated[str | None, typer.Option(help="Docker daemon, unix:///path.")] = None,
) -> None:
    """Say what IMAGE lacks or does wrong for jobs.

    Exit status: 0 fine, 1 errors were found, 2 the image could not be checked.
    Needs access to Docker, so it is for those who build images.
    """
    from ..imagecheck import gather, report
    from ..imagecheck.findings import findings

    try:
        with gather.daemon(docker_host) as client:
            facts = gather.gather(client, image)
            found = [*gather.check_layer(client, facts), *findings(facts)]
    except DockerjobError as error:
        print(f"dockerjob: {image}: {error}", file=sys.stderr)
        raise typer.Exit(report.UNKNOWN) from error
    if json:
        print(report.as_json(facts, found))
    else:
        report.show(facts, found)
    raise typer.Exit(report.exit_status(found, strict))
