# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab's LSF has of a site's own: ``integration/lsf``, installed as docs/batch_integration.md says.

That is the application profile, with its job starter and its POST_EXEC, and esub. What LSF does
with them is IBM's "External job submission and execution controls" and "lsb.applications" (10.1).
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from . import host
from .batch import Account, Options
from .inventory import SITE
from .model import REPOSITORY, LabError, LabHost
from .system import CLEAN_ENVIRONMENT, write_if_changed

INTEGRATION = REPOSITORY / "integration/lsf"
SERVERDIR = "/share/lsf/etc"
ABORT = 97
"""Exit status of an esub that refuses (LSB_SUB_ABORT_VALUE)."""

ESUB = re.compile(r"([A-Za-z0-9_-]+)(?:\(([^)]*)\))?")
PARAMETER = re.compile(r'(\w+)="?([^"\n]*)"?')


@dataclass(frozen=True)
class Profile:
    """An application profile, as far as the lab's LSF knows one."""

    name: str
    job_starter: str
    post_exec: str


def find_profile(name: str) -> Profile | None:
    """Return the profile of ``-app`` *name*, None for no name."""
    if not name:
        return None
    text = (INTEGRATION / "lsb.applications").read_text()
    # An admin writes the path of his own installation.
    text = text.replace("/opt/dockerjob", str(SITE["submit_host_install_root"]))
    found = dict(re.findall(r"^(\w+) *= *(.*)$", text, re.MULTILINE))
    if found["NAME"] != name:
        raise LabError(f"#BSUB: -app {name}: there is no such application profile")
    return Profile(name, found["JOB_STARTER"], found["POST_EXEC"])


def run_esubs(submit_host: LabHost, options: Options, who: Account) -> tuple[Options, Mapping[str, str]]:
    """Run the esubs of ``-a`` as the user; return the options, and the variables that they have set.

    Raises:
        LabError: one of them has refused, or there is none of that name.
    """
    variables: dict[str, str] = {}
    for name, arguments in ESUB.findall(options.esub):
        changed = _run(submit_host, name, arguments.split(",") if arguments else [], options, who)
        options = replace(options, application=changed.pop("LSB_SUB3_APP", options.application))
        variables |= changed
    return options, variables


def _parameters(options: Options) -> str:
    texts = {
        "LSB_SUB_JOB_NAME": options.job_name or "",
        "LSB_SUB_QUEUE": options.queue,
        "LSB_SUB_OUT_FILE": options.output or "",
        "LSB_SUB_RES_REQ": options.resources,
        "LSB_SUB_PROJECT_NAME": options.project,
        "LSB_SUB_ADDITIONAL": options.esub,
        "LSB_SUB3_APP": options.application,
    }
    lines = [f'{name}="{text}"\n' for name, text in texts.items() if text]
    numbers = ("LSB_SUB_NUM_PROCESSORS", "LSB_SUB_MAX_NUM_PROCESSORS")
    return "".join([*lines, *(f"{name}={options.slots}\n" for name in numbers)])


def _run(
    submit_host: LabHost, name: str, arguments: list[str], options: Options, who: Account
) -> dict[str, str]:
    root = Path(f"/proc/{host.required_pid(submit_host)}/root")
    program = f"{SERVERDIR}/esub.{name}"
    source = INTEGRATION / f"esub.{name}"
    if not source.exists():
        raise LabError(f"#BSUB: -a {name}: there is no esub.{name}")
    write_if_changed(root / program[1:], source.read_text(), mode=0o755)
    files = {
        "LSB_SUB_PARM_FILE": f"/tmp/.lsbsubparm.{os.getpid()}",  # noqa: S108  # where LSF has it, on the lab's host
        "LSB_SUB_MODIFY_FILE": f"/tmp/.lsbsubdeltaparm.{os.getpid()}.{who.uid}",  # noqa: S108  # likewise
        "LSB_SUB_MODIFY_ENVFILE": f"/tmp/.lsbsubdeltaenv.{os.getpid()}.{who.uid}",  # noqa: S108  # likewise
    }
    paths = [root / path[1:] for path in files.values()]
    paths[0].write_text(_parameters(options))
    try:
        _call(submit_host, [program, *arguments], {**files, "LSB_SUB_ABORT_VALUE": str(ABORT)}, who)
        return dict(
            pair for path in paths[1:] if path.exists() for pair in PARAMETER.findall(path.read_text())
        )
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _call(submit_host: LabHost, argv: list[str], variables: Mapping[str, str], who: Account) -> None:
    become = ["setpriv", f"--reuid={who.uid}", f"--regid={who.gid}", "--init-groups"]
    environment = [
        "env",
        "-i",
        "PATH=/usr/bin:/bin",
        *(f"{name}={value}" for name, value in variables.items()),
    ]
    done = subprocess.run(
        [*host.entering(submit_host), "--", *become, *environment, *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=CLEAN_ENVIRONMENT,
        cwd="/",
        timeout=30,
        check=False,
    )
    if done.returncode == ABORT:
        raise LabError(f"{done.stderr.strip()}\nRequest aborted by esub. Job not submitted.")
    if done.returncode:
        raise LabError(f"{argv[0]} ended with {done.returncode}: {done.stderr.strip()}")
