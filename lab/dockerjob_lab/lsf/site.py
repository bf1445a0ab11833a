# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab's LSF has of a site's own: ``integration/lsf``, installed as docs/batch_integration.md says.

That is the application profile, with its job starter and its POST_EXEC, and esub. What LSF does
with them is IBM's "External job submission and execution controls" and "lsb.applications" (10.1).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import LsfError
from .job import options_of
from .options import Options
from .spool import ROOT

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


def find_profile(name: str, root: Path = ROOT) -> Profile | None:
    """Return the profile of ``-app`` *name*, None for no name.

    Raises:
        LsfError: there is no such profile.
    """
    if not name:
        return None
    return read_profile(name, (root / "conf/lsb.applications").read_text())


def read_profile(name: str, text: str) -> Profile:
    """Read the one profile in the text of a ``lsb.applications``.

    Raises:
        LsfError: it has another name.
    """
    found = dict(re.findall(r"^(\w+) *= *(.*)$", text, re.MULTILINE))
    if found["NAME"] != name:
        raise LsfError(f"-app {name}: there is no such application profile")
    return Profile(name, found["JOB_STARTER"], found["POST_EXEC"])


def run_esubs(options: Options, environment: Mapping[str, str]) -> tuple[Options, dict[str, str]]:
    """Run the esubs of ``-a``; return the options, and the variables that they have set.

    Raises:
        LsfError: one of them has refused, or there is none of that name.
    """
    variables: dict[str, str] = {}
    for name, arguments in ESUB.findall(options.esub):
        changed = _run(name, arguments.split(",") if arguments else [], options, environment)
        options = replace(options, application=changed.pop("LSB_SUB3_APP", options.application))
        variables |= changed
    return options, variables


def parameters(options: Options) -> str:
    """What an esub reads in LSB_SUB_PARM_FILE."""
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


def _run(name: str, arguments: list[str], options: Options, environment: Mapping[str, str]) -> dict[str, str]:
    program = ROOT / f"etc/esub.{name}"
    if not program.exists():
        raise LsfError(f"-a {name}: there is no esub.{name}")
    with tempfile.TemporaryDirectory(prefix=".lsbsub") as directory:
        names = ("LSB_SUB_PARM_FILE", "LSB_SUB_MODIFY_FILE", "LSB_SUB_MODIFY_ENVFILE")
        files = {each: Path(directory) / each for each in names}
        files["LSB_SUB_PARM_FILE"].write_text(parameters(options))
        told = {each: str(path) for each, path in files.items()}
        done = subprocess.run(
            [str(program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**environment, **told, "LSB_SUB_ABORT_VALUE": str(ABORT)},
            timeout=30,
            check=False,
        )
        if done.returncode == ABORT:
            raise LsfError(f"{done.stderr.strip()}\nRequest aborted by esub. Job not submitted.")
        if done.returncode:
            raise LsfError(f"{program} ended with {done.returncode}: {done.stderr.strip()}")
        written = [files[each].read_text() for each in names[1:] if files[each].exists()]
    return dict(pair for text in written for pair in PARAMETER.findall(text))


def main() -> int:
    """Run the esubs for ``lab.py submit``: options as JSON come in, options and variables go out."""
    told: dict[str, Any] = json.load(sys.stdin)
    try:
        options, variables = run_esubs(options_of(told), dict(os.environ))
    except LsfError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps([dataclasses.asdict(options), variables]))
    return 0
