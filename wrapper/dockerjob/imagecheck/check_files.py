# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Findings about the image's files: what is there for a user that the image doesn't know."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from dockerjob_agent.check import OVERLAYS

from .facts import Facts, Files
from .finding import SHOWN, Finding, some

TEMPORARY = "/tmp"  # noqa: S108  # in the image

DISTRIBUTION_SETUID = re.compile(
    r"chage|chfn|chsh|crontab|dbus-daemon-launch-helper|expiry|fusermount|fusermount3|gpasswd|mount|mount\.nfs"
    r"|newgidmap|newgrp|newuidmap|pam_timestamp_check|passwd|pkexec|polkit-agent-helper-1|ssh-agent|ssh-keysign"
    r"|su|sudo|umount|unix_chkpwd|userhelper|utempter|wall|write|bsd-write"
)
"""What distributions ship with the bits set; a job needs none of them."""


def shell(facts: Facts) -> Iterator[Finding]:
    """COMMAND is run by a shell of the image."""
    if facts.files.which("/bin/sh", []) is None:
        if facts.has_layer:
            yield Finding("shell", "error", "there is no /bin/sh", "COMMAND is run by a shell: install one")
        else:
            yield Finding("shell", "note", "there is no /bin/sh: COMMAND is run by the infrastructure's")
    elif facts.files.which("bash", ["/bin", "/usr/bin"]) is None:
        yield Finding(
            "shell",
            "note",
            "there is no bash",
            "only jobs of users with another SHELL will run; install bash"
            if facts.has_layer
            else "COMMANDs of users of bash are run by /bin/sh",
        )


def libc(facts: Facts) -> Iterator[Finding]:
    """Say which C library programs are linked to."""
    said = []
    for path, marks in sorted(facts.files.marks.items()):
        for mark in marks:
            if mark.startswith("stable release version "):
                said.append(f"glibc {mark.rsplit(' ', 1)[1]} ({path})")
        if "musl libc" in marks:
            version = next((mark for mark in marks if mark[0].isdigit()), "of unknown version")
            said.append(f"musl {version} ({path})")
    yield Finding(
        "libc", "note", "; ".join(said) or "none found: programs are linked statically, or don't start"
    )


def hardware(facts: Facts) -> Iterator[Finding]:
    """Say what is there for fast networks and GPUs; their drivers are the hosts'."""
    kinds = {
        "InfiniBand": facts.files.named("libibverbs.so"),
        "UCX": facts.files.named("libucp.so"),
        "libfabric": facts.files.named("libfabric.so"),
        "CUDA": facts.files.named("libcudart.so", "libcuda.so", "libnccl.so"),
    }
    for name, paths in kinds.items():
        if paths:
            yield Finding("hardware", "note", f"{name}: {some(paths)}")


def setuid(facts: Facts) -> Iterator[Finding]:
    """Jobs run without new privileges, so these bits have no effect."""
    by_distribution = [
        path for path in facts.files.setuid if DISTRIBUTION_SETUID.fullmatch(posixpath.basename(path))
    ]
    others = [path for path in facts.files.setuid if path not in by_distribution]
    if others:
        yield Finding(
            "setuid", "warning", f"set-uid or set-gid: {some(others)}",
            "it has no effect in a job; the program must work without, then chmod ug-s",
        )  # fmt: skip
    if by_distribution:
        yield Finding("setuid", "note", f"set-uid or set-gid by the distribution: {some(by_distribution)}")


def capabilities(facts: Facts) -> Iterator[Finding]:
    """A program with file capabilities can't be executed where those are excluded (execve(2), EPERM)."""
    for path in facts.files.capabilities:
        yield Finding(
            "capabilities",
            "warning",
            f"{path} has file capabilities",
            f"it can't start in a job: setcap -r {path}",
        )


def writable(facts: Facts) -> Iterator[Finding]:
    """Directories where anyone may replace anyone's files."""
    if facts.files.writable:
        yield Finding(
            "writable", "warning", f"writable for everyone, without sticky bit: {some(facts.files.writable)}",
            "chmod o-w; in a job the image is read-only, so nothing can be written there",
        )  # fmt: skip


def closed(facts: Facts) -> Iterator[Finding]:
    """Jobs run as any user: what only its owner can read is not there for them."""
    in_path = [
        entry
        for entry in facts.config.path
        if any(_shut(facts.files, place) for place in _with_parents(entry))
    ]
    if in_path:
        yield Finding(
            "any user",
            "error",
            f"{' '.join(in_path)} in PATH is closed to users",
            "chmod o+rx these directories",
        )
    if facts.files.closed:
        yield Finding(
            "any user",
            "warning",
            f"closed to users: {some(facts.files.closed)}",
            "chmod o+rX what programs need",
        )


def _with_parents(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    return ["/" + "/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _shut(files: Files, directory: str) -> bool:
    entry = files.find(directory)
    return entry is not None and entry.kind == "directory" and not entry.mode & 0o001


def homes(facts: Facts) -> Iterator[Finding]:
    """The job's user isn't the image's: what lies in a home of the image is not theirs."""
    for name, value in sorted(facts.config.env.items()):
        if name not in ("HOME", "PWD") and re.search(r"(^|:)/(root|home/[^/:]+)(/|:|$)", value):
            yield Finding(
                "home",
                "warning",
                f"ENV {name}={value} leads to a home",
                "install below /opt; jobs have the user's home",
            )


def owners(facts: Facts) -> Iterator[Finding]:
    """Files of users that the image doesn't know: of whom they are on the hosts is chance."""
    known = {int(fields[2]) for fields in _passwd(facts.files)}
    strangers = {uid: count for uid, count in facts.files.owners.items() if uid not in known and uid != 0}
    if strangers:
        said = ", ".join(f"{count} of uid {uid}" for uid, count in sorted(strangers.items())[:SHOWN])
        yield Finding(
            "owners",
            "note",
            f"files of users that /etc/passwd lacks: {said}",
            "chown root; unpack with --no-same-owner",
        )
    homeless = [
        f"{fields[0]} ({fields[5]})" for fields in _passwd(facts.files)
        if int(fields[2]) >= 1000 and fields[0] != "nobody" and facts.files.find(fields[5]) is None
    ]  # fmt: skip
    if homeless:
        yield Finding("owners", "note", f"users whose home doesn't exist: {some(homeless)}")


def _passwd(files: Files) -> list[list[str]]:
    lines = [line.split(":") for line in files.texts.get("/etc/passwd", "").splitlines()]
    return [fields for fields in lines if len(fields) == 7 and fields[2].isdecimal()]


def overlays(facts: Facts) -> Iterator[Finding]:
    """The files that a job's own are mounted over must be plain ones."""
    for path in OVERLAYS:
        entry = facts.files.entries.get(path)
        if entry is not None and entry.kind != "file":
            what = f"a symbolic link to {entry.target}" if entry.kind == "link" else f"a {entry.kind}"
            yield Finding(
                "job files", "error", f"{path} is {what}", "jobs mount theirs there: make it a plain file"
            )


def temporary(facts: Facts) -> Iterator[Finding]:
    """Jobs get a /tmp of their own; other uses of the image don't."""
    entry = facts.files.entries.get(TEMPORARY)
    if entry is None or entry.kind != "directory" or entry.mode & 0o1777 != 0o1777:
        found = "does not exist" if entry is None else f"is a {entry.kind} with mode {entry.mode:o}"
        yield Finding(
            "temporary files", "warning", f"{TEMPORARY} {found}", "make it a directory with mode 1777"
        )


def startup_files(facts: Facts) -> Iterator[Finding]:
    """A job's shell is neither a login shell nor interactive."""
    found = [
        path
        for path in sorted(facts.files.entries)
        if path.startswith("/etc/profile.d/") and path.endswith(".sh")
    ]
    if found:
        yield Finding("environment", "note", f"not read by jobs: {some(found)}", "use ENV for what they set")


def secrets(facts: Facts) -> Iterator[Finding]:
    """Who has the image has what is in it."""
    if facts.files.secrets:
        yield Finding(
            "secrets",
            "warning",
            f"private keys: {some(facts.files.secrets)}",
            "remove them in the step that made them",
        )
