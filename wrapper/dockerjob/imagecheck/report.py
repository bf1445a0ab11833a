# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say what was found: in words for people, as JSON for programs, as an exit status for CI."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape

from .facts import Facts
from .finding import Finding, megabytes
from .mpi import find_mpi

FINE, WRONG, UNKNOWN = 0, 1, 2
"""Exit statuses: nothing wrong, something is, and the image could not be looked at."""

LAYER_TEXT = 100
"""Characters of a layer's command that are shown; ``--json`` has all."""

_COLOURS = {"error": "red", "warning": "yellow", "note": "green"}


def exit_status(found: Iterable[Finding], strict: bool) -> int:
    """Return :data:`WRONG` if there is an error, or with *strict* a warning."""
    bad = ("error", "warning") if strict else ("error",)
    return WRONG if any(finding.level in bad for finding in found) else FINE


def as_json(facts: Facts, found: list[Finding]) -> str:
    """Return the findings and the facts that a program may want to compare."""
    return json.dumps(
        {
            "image": facts.image,
            "id": facts.id,
            "architecture": facts.config.architecture,
            "size": facts.size,
            "layers": [asdict(layer) for layer in facts.layers if layer.size],
            "mpi": [asdict(one) for one in find_mpi(facts.files, facts.config)],
            "setuid": facts.files.setuid,
            "findings": [asdict(finding) for finding in found],
        },
        indent=2,
    )


def show(facts: Facts, found: list[Finding]) -> None:
    """Print findings and layers.  The image's texts are neither markup nor commands to the terminal here."""
    console = Console()
    for line in (*(_finding(one) for one in found), "", "Layers, the lowest first:", *_layers(facts)):
        console.print(line, soft_wrap=True, highlight=False)


def _finding(one: Finding) -> str:
    text = _plain(f"{one.name}: {one.text}" + (f" -> {one.remedy}" if one.remedy else ""))
    return f"[{_COLOURS[one.level]}]{one.level:<8}[/] {text}"


def _layers(facts: Facts) -> Iterator[str]:
    for layer in facts.layers:
        if layer.size:
            yield _plain(f"{megabytes(layer.size):>12}  {layer.created_by[:LAYER_TEXT]}")


def _plain(text: str) -> str:
    return escape("".join(character if character.isprintable() else "?" for character in text))
