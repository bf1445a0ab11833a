# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the tables of docs/performance.md between its marks; the prose around them is left."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- begin: make bench -->", "<!-- end: make bench -->"


def write_page(path: Path, results: Mapping[str, Any]) -> None:
    """Replace what stands between the marks of *path* by the tables of *results*."""
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path} lacks the marks {BEGIN} and {END}")
    tables = f"{BEGIN}\n{render(results)}\n{END}"
    path.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: tables, text, flags=re.DOTALL))


def render(results: Mapping[str, Any]) -> str:
    """Return all tables as Markdown."""
    parts = [
        f"{results['hosts']} hosts on {results['cores']} cores, {results['runs']} pairs of floor and job, in turns.",
        _start(results),
        _phases(results),
        _infra(results["infra"]),
        _idle(results["idle"]),
    ]
    if "distribution" in results:
        parts.append(_distribution(results["distribution"]))
    if "pitzdaily" in results:
        parts.append(_openfoam(results["pitzdaily"]))
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _spread(values: Mapping[str, float]) -> list[str]:
    return [f"{values[key]:.2f} s" for key in ("min", "median", "max")]


def _start(results: Mapping[str, Any]) -> str:
    ratio = results["ratio"]
    rows = [
        ["floor: ssh host docker run", *_spread(results["floor"]["run"]), ""],
        ["job: wrapper to first line", *_spread(results["start"]), f"{ratio['start']} x (at most 4)"],
        ["discovery: last container to all READY", *_spread(results["discovery"]), "(at most 1 s)"],
        ["floor: ssh host docker rm -f", *_spread(results["floor"]["rm"]), ""],
        ["job: teardown", *_spread(results["teardown"]), f"{ratio['teardown']} x (at most 3)"],
    ]
    return _table(["what", "min", "median", "max", "ratio to floor, pair by pair"], rows)


def _phases(results: Mapping[str, Any]) -> str:
    rows = [[name, *_spread(values)] for name, values in results["phases"].items()]
    return "The broker's phases:\n\n" + _table(["phase", "min", "median", "max"], rows)


def _infra(infra: Mapping[str, Any]) -> str:
    rows = [
        ["the image's layer", *_spread(infra["image"])],
        ["the host's, injected", *_spread(infra["injected"])],
        ["difference, pair by pair", *_spread(infra["difference"])],
    ]
    return (
        f"The same image with its own infrastructure and with the host's, {infra['pairs']} pairs in turns, "
        "wrapper to first line:\n\n" + _table(["infrastructure", "min", "median", "max"], rows)
    )


def _idle(idle: Mapping[str, Any]) -> str:
    rows = [
        [host, part, f"{used['cpu_seconds_per_minute']:.2f}", f"{used['memory_mb']:.0f}"]
        for host, parts in idle.items()
        for part, used in sorted(parts.items())
    ]
    head = ["host", "part", "CPU seconds per minute", "memory (PSS), MB"]
    return "While COMMAND computes:\n\n" + _table(head, rows)


def _distribution(results: Mapping[str, Any]) -> str:
    ratio = results["ratio"]
    rows = [
        ["floor: docker pull over ssh", *_spread(results["floor"]), ""],
        ["`dockerjob images sync`, on no host", *_spread(results["sync cold"]), f"{ratio['median']:.2f} x"],
        ["`dockerjob images sync`, on all hosts", *_spread(results["sync warm"]), ""],
        ["job: wrapper to first line, on no host", *_spread(results["job cold"]), ""],
        ["job: wrapper to first line, on all hosts", *_spread(results["job warm"]), ""],
    ]
    head = ["an image that is", "min", "median", "max", "ratio to floor, round by round"]
    return (
        f"An image with {results['megabytes']} MB of its own, from the registry to {results['hosts']} hosts at once, "
        f"{results['rounds']} rounds:\n\n" + _table(head, rows)
    )


def _openfoam(result: Mapping[str, Any]) -> str:
    same = "the same, line for line" if result["residuals_identical"] else "DIFFERENT"
    rows = [
        ["in containers", f"{result['contained_seconds']:.2f} s"],
        ["on the bare hosts", f"{result['bare_seconds']:.2f} s"],
        [f"residuals ({result['residual_lines']} lines)", same],
    ]
    return "pitzDaily, 4 ranks on 2 hosts, the solver's own ExecutionTime:\n\n" + _table(
        ["run", "time"], rows
    )
