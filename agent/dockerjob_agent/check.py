# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does this image fit? One line per requirement, with the remedy where it is not met.

Runs inside the image with nothing but Python's standard library, so it can also be
mounted into an image that lacks the infrastructure layer: ``python3 check.py``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

INFRA = "add the infrastructure layer (images/infra) on top of the image, or have the host's mounted (infra)"
ROOT = Path("/opt/dockerjob")
MPICH_REPAIRED = (4, 1, 2)
"""First MPICH without the fault of pmodels/mpich pull request 6596, when built for UCX."""

TEMPORARY = Path("/tmp")  # noqa: S108 (it is this directory that is looked at)
OVERLAYS = ("/etc/hosts", "/etc/passwd", "/etc/group", "/etc/ssh/ssh_config")

Level = Literal["ok", "missing", "note"]


@dataclass(frozen=True)
class Finding:
    """One requirement: whether the image meets it, and what to do if not."""

    name: str
    level: Level
    detail: str
    remedy: str = ""


def findings(application: bool = True) -> Iterator[Finding]:
    """Check everything; without *application*, only what the infrastructure layer brings."""
    yield _shell()
    yield _bash()
    yield _program("ssh server", _portable("sbin/sshd") or "/usr/sbin/sshd", INFRA)
    yield _program("ssh client", _portable("bin/ssh") or "ssh", INFRA)
    yield _program("ssh-keygen", _portable("bin/ssh-keygen") or "ssh-keygen", INFRA)
    yield _python()
    yield _library("supervisor", "supervisor.supervisord")
    yield _library("etcd client", "etcd3")
    yield _library("agent", "dockerjob_agent.run")
    yield _program("entry point", str(ROOT / "bin/dockerjob-agent"), INFRA)
    yield _ping()
    yield from _overlays()
    yield _temporary()
    if application:
        yield from _mpi()
        yield _path()
        yield _startup_files()


def _program(name: str, program: str, remedy: str) -> Finding:
    path = shutil.which(program, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
    if path:
        return Finding(name, "ok", path)
    return Finding(name, "missing", f"{program} not found", remedy)


def _portable(name: str) -> str | None:
    """Return a program of the portable infrastructure, None where that is not mounted."""
    path = ROOT / name
    return str(path) if path.exists() else None


def _shell() -> Finding:
    found = _program("shell", "/bin/sh", "the image has no shell; COMMAND is run by one")
    portable = _portable("bin/sh")
    if found.level == "ok" or not portable:
        return found
    return Finding(
        "shell", "note", f"only {portable}", "COMMAND finds no other program unless the image has it"
    )


def _bash() -> Finding:
    path = shutil.which("bash", path="/usr/bin:/bin")
    if path:
        return Finding("bash", "ok", path)
    if _portable("bin/sh"):
        return Finding("bash", "note", "not found", "COMMANDs of users of bash are run by /bin/sh")
    return Finding("bash", "note", "not found", "only jobs whose SHELL is another one will run; install bash")


def _python() -> Finding:
    python = ROOT / "bin/python"
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return Finding("python", "missing", f"{python} does not run", INFRA)
    version = done.stdout.strip()
    if tuple(int(part) for part in version.split(".")) < (3, 11):
        return Finding("python", "missing", f"version {version}", "the agent needs Python 3.11 or newer")
    return Finding("python", "ok", f"{python} {version}")


def _library(name: str, module: str) -> Finding:
    """Import *module* in the agent's own interpreter: a file that is there may still not load."""
    try:
        done = subprocess.run(
            [str(ROOT / "bin/python"), "-I", "-c", f"import {module}"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except OSError as error:
        return Finding(name, "missing", str(error), INFRA)
    if done.returncode == 0:
        return Finding(name, "ok", module)
    return Finding(name, "missing", (done.stderr.strip().splitlines() or ["import failed"])[-1], INFRA)


def _ping() -> Finding:
    path = shutil.which("ping")
    if not path:
        return Finding("ping", "note", "not found", "the agent does not need it, users may: install iputils")
    try:
        capabilities = bool(os.getxattr(path, "security.capability"))
    except OSError:
        capabilities = False
    if capabilities:
        return Finding(
            "ping",
            "note",
            f"{path} has file capabilities",
            f"it can't start in a job; run 'setcap -r {path}'",
        )
    return Finding("ping", "ok", path)


def _overlays() -> Iterator[Finding]:
    """The files that a job's own are mounted over must not be symbolic links to elsewhere."""
    for name in OVERLAYS:
        path = Path(name)
        if path.is_symlink():
            yield Finding(
                name, "missing", f"is a symbolic link to {os.readlink(path)}", "make it a plain file"
            )
        elif path.exists() and not path.is_file():
            yield Finding(name, "missing", "is no plain file", "make it a plain file")
    yield Finding("job files", "ok", "passwd, group, hosts and ssh_config can be mounted over")


def _temporary() -> Finding:
    name, remedy = "temporary files", "make it with mode 1777; MPI keeps its sessions there"
    try:
        mode = TEMPORARY.stat().st_mode
    except FileNotFoundError:
        return Finding(name, "missing", f"{TEMPORARY} does not exist", remedy)
    if mode & stat.S_IWOTH and mode & stat.S_ISVTX:
        return Finding(name, "ok", f"{TEMPORARY} is writable for every user")
    return Finding(name, "missing", f"{TEMPORARY} has mode {stat.filemode(mode)}", remedy)


def _mpi() -> Iterator[Finding]:
    """Say which MPI the image brings; a job of one process needs none."""
    found = []
    for program in ("mpirun", "mpirun.openmpi", "mpirun.mpich", "mpiexec.mpich", "mpiexec.hydra"):
        path = shutil.which(program)
        if path:
            text = _output([path, "--version"])
            version = re.search(r"[0-9]+\.[0-9]+(\.[0-9]+)?", text)
            found.append(f"{path} {version[0] if version else 'of unknown version'}")
            if version and "HYDRA" in text and _as_numbers(version[0]) < MPICH_REPAIRED:
                yield Finding(
                    "MPICH",
                    "note",
                    f"{version[0]} may hang in MPI_Finalize across hosts",
                    "use 4.1.2 or newer",
                )
    if found:
        yield Finding("MPI", "ok", "; ".join(found))
    else:
        yield Finding(
            "MPI", "note", "no mpirun in PATH", "install the application's MPI, or set PATH with ENV"
        )


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _output(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _path() -> Finding:
    """Jobs run as any user: a program that only root can reach is not there for them."""
    closed = [
        entry
        for entry in os.environ.get("PATH", "").split(":")
        if entry and any(not _open_to_all(directory) for directory in (Path(entry), *Path(entry).parents))
    ]
    if closed:
        return Finding(
            "any user",
            "missing",
            f"{' '.join(closed)} in PATH is closed to users",
            "chmod o+rx these directories",
        )
    return Finding("any user", "ok", "every directory in PATH is open to all users")


def _open_to_all(directory: Path) -> bool:
    try:
        return bool(directory.stat().st_mode & stat.S_IXOTH)
    except PermissionError:
        return False
    except OSError:
        # A directory in PATH that does not exist hides nothing.
        return True


def _startup_files() -> Finding:
    """Settings in shell start-up files don't reach a job: its shell is neither login nor interactive."""
    profiles = [str(path) for path in sorted(Path("/etc/profile.d").glob("*.sh"))]
    if profiles:
        return Finding(
            "environment", "note", f"{' '.join(profiles)} is not read by jobs", "use ENV in the Dockerfile"
        )
    return Finding("environment", "ok", "no settings hidden in shell start-up files")


def render(finding: Finding) -> str:
    """Format one finding as a line."""
    text = f"{finding.level:<8}{finding.name}: {finding.detail}"
    return f"{text} -> {finding.remedy}" if finding.remedy else text


def main(as_json: bool = False, application: bool = True) -> int:
    """Print the findings; return 1 if the image lacks something."""
    found = list(findings(application))
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        for finding in found:
            print(render(finding))
    return int(any(finding.level == "missing" for finding in found))


if __name__ == "__main__":
    raise SystemExit(main("--json" in sys.argv, "--no-application" not in sys.argv))
