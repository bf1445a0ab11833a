# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``dockerjob``: what administrators and users ask about the cluster and its images."""

from __future__ import annotations

import sys

import typer
from dockerjob_core.errors import DockerjobError

from .commands import images
from .commands.doctor import doctor
from .commands.gc import gc
from .commands.jobs import RefusedError, jobs, logs, show
from .commands.site_images import list_images, sync

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
app.add_typer(images.app, name="images")
images.app.command("list")(list_images)
images.app.command("sync")(sync)
for command in (jobs, show, logs, doctor, gc):
    app.command()(command)


@app.callback()
def _root() -> None:
    """Jobs are submitted with hpc_submit_dockerjob; this command is for looking around and cleaning up."""


def main() -> None:
    """Entry point of ``dockerjob``."""
    try:
        app()
    except RefusedError as error:
        sys.exit(error.exit_status)
    except DockerjobError as error:
        print(f"dockerjob: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
