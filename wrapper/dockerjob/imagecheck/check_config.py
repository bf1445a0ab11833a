# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Findings about the image's configuration: what of it holds in a job."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .facts import Facts
from .finding import Finding, Level, megabytes

LARGE = 10 << 30
"""Bytes from which an image is long on its way to the hosts."""

MUCH_CACHED = 5 << 20
"""Bytes of package files and lists from which they are worth a word."""

_ROOTS_WORK = re.compile(r"\b(gosu|su-exec|sudo|chown|chroot|useradd|usermod|groupadd|adduser|addgroup)\b")
_SETTINGS = re.compile(r"^\s*(export\s|\.\s+/|source\s)", re.MULTILINE)


def architecture(facts: Facts) -> Iterator[Finding]:
    """Programs of another architecture don't start."""
    own, host = facts.config.architecture, facts.host_architecture
    if own != host:
        yield Finding(
            "architecture", "error", f"for {own}, this host is {host}", "build it for the hosts' architecture"
        )


def infrastructure(facts: Facts) -> Iterator[Finding]:
    """The layer brings ssh, the agent and its Python."""
    if facts.has_layer:
        yield Finding("infrastructure", "note", "the image has the infrastructure layer")
    else:
        yield Finding(
            "infrastructure", "note", "the image has no layer of it: its containers get the hosts' own"
        )


def user(facts: Facts) -> Iterator[Finding]:
    """USER has no effect: a job runs as its user."""
    name = facts.config.user or "root"
    yield Finding("user", "note", f"USER is {name}; a job runs as its own user whatever it says")


def entrypoint(facts: Facts) -> Iterator[Finding]:
    """ENTRYPOINT is not run by jobs, so what it sets up is missing there."""
    if not facts.config.entrypoint:
        return
    called = " ".join(facts.config.entrypoint)
    yield Finding("entry point", "note", f"ENTRYPOINT {called} is not run by jobs", "put settings into ENV")
    for word in facts.config.entrypoint:
        path = facts.files.which(word, facts.config.path)
        text = facts.files.texts.get(facts.files.resolve(path), "") if path else ""
        if work := sorted(set(_ROOTS_WORK.findall(text))):
            yield Finding(
                "entry point",
                "warning",
                f"{path} assumes root: {' '.join(work)}",
                "prepare that when the image is built",
            )
        if _SETTINGS.search(text):
            yield Finding("entry point", "warning", f"{path} sets variables that jobs don't get", "use ENV")


def workdir(facts: Facts) -> Iterator[Finding]:
    """A job starts in JOBDIR; a program that writes to WORKDIR fails there."""
    path = facts.config.workdir
    if path in ("", "/"):
        return
    entry = facts.files.find(path)
    if entry is None or not entry.mode & 0o002:
        yield Finding(
            "workdir", "note", f"WORKDIR {path} is not writable for users", "jobs run in JOBDIR, not there"
        )


def volumes(facts: Facts) -> Iterator[Finding]:
    """A volume would be a directory on the daemon's disk without a limit, so jobs have another in its place."""
    if facts.config.volumes:
        yield Finding(
            "volumes",
            "warning",
            f"VOLUME {' '.join(facts.config.volumes)}: in jobs an empty directory in memory",
            "make the image without it; what a job keeps belongs into JOBDIR",
        )


def services(facts: Facts) -> Iterator[Finding]:
    """What speaks of a service rather than of a job."""
    if facts.config.ports:
        yield Finding("services", "note", f"EXPOSE {' '.join(facts.config.ports)} has no effect in a job")
    if facts.config.healthcheck:
        yield Finding("services", "note", "HEALTHCHECK is switched off in a job")


def size(facts: Facts) -> Iterator[Finding]:
    """Each host needs a copy."""
    level: Level = "warning" if facts.size >= LARGE else "note"
    count = sum(1 for layer in facts.layers if layer.size)
    yield Finding("size", level, f"{megabytes(facts.size)} in {count} layer{'' if count == 1 else 's'}")
    if facts.files.cached >= MUCH_CACHED:
        yield Finding(
            "package cache", "note", f"{megabytes(facts.files.cached)} of package files and lists were left",
            "apt-get clean and rm -rf /var/lib/apt/lists/*, in the same RUN",
        )  # fmt: skip
