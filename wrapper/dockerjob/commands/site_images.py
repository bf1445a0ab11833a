# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``dockerjob images list`` and ``sync``: which images this site has, and keeping its hosts current."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..query import Query
from .jobs import JsonOption, ask

DIGEST_SHOWN = 12
MB = 1_000_000


def list_images(as_json: JsonOption = False) -> None:
    """List what APPLICATION can be: tags, sizes, digests, and which hosts have them.

    What users are told is up to five minutes old; root's and administrators' is of now.
    """
    found = json.loads(ask(Query("images")))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table("application", "size", "image", "hosts", "description", box=None, pad_edge=False)
    for image in found:
        size = "" if image["size"] is None else f"{image['size'] / MB:.0f} MB"
        digest = image["image"].rpartition("sha256:")[2][:DIGEST_SHOWN] or "not in the registry"
        hosts = ", ".join(image["hosts"]) or "none"
        table.add_row(image["application"], size, digest, hosts, image["description"])
    Console().print(table if found else "no images")


def sync(
    host: Annotated[
        list[str] | None, typer.Option("--host", metavar="HOST", help="Only this host, instead of all.")
    ] = None,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Also remove images of the registry that are not current any more."),
    ] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", metavar="DAYS", min=0, help="Remove only what was built before.")
    ] = 7,
) -> None:
    """Bring the current images of all applications from the site's registry to the hosts.

    With --prune images go that no application means any more, but none that a job or a container uses, and
    none of a name that the registry doesn't have. For root and the service account, on a submit host; the role
    submit_host has cron call it. Exit status 210 or 214 if a host is not as it should be.
    """
    from ..broker.account import become_service_account
    from ..broker.distribution import sync as bring
    from ..config import load_config

    become_service_account()
    bring(
        load_config(), lambda text: print(text, flush=True), tuple(host or ()), older_than if prune else None
    )
