# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``integration/pbs``: Torque's scripts and OpenPBS's hook ask for the job, and never fail one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from site_files import INTEGRATION, OPT, run

EPILOGUE = ("123[4].server", "alice", "users", "x; id", "9", "walltime=1", "", "batch", "", "0", "/s")


def installed(name: str, tmp_path: Path, gone: str = "") -> str:
    """A copy as it lies in ``mom_priv``, with job_gone.sh where *tmp_path* has it."""
    stand_in = tmp_path / "integration/job_gone.sh"
    stand_in.parent.mkdir(exist_ok=True)
    if gone:
        stand_in.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\nenv >{tmp_path}/environment\n{gone}\n')
        stand_in.chmod(0o755)
    copy = tmp_path / name
    copy.write_text((INTEGRATION / "pbs" / name).read_text().replace(OPT, str(tmp_path)))
    copy.chmod(0o500)
    return str(copy)


@pytest.mark.parametrize(
    ("name", "argv", "called"),
    [
        ("prologue", ("123.server", "alice", "users"), "--wait 60 123.server"),
        ("epilogue", EPILOGUE, "--wait 120 123[4].server"),
    ],
)
@pytest.mark.parametrize("gone", ["exit 0", "exit 3", ""])
def test_torques_scripts(tmp_path: Path, name: str, argv: tuple[str, ...], called: str, gone: str) -> None:
    done = run([installed(name, tmp_path, gone), *argv], {})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not gone or (tmp_path / "calls").read_text() == f"{called}\n"


def event(tmp_path: Path, kind: str, gone: str, first: bool = True) -> tuple[list[str], bool]:
    """Run the hook as PBS does, with its text alone; return what was logged, and whether it accepted."""
    source = Path(installed("dockerjob_hook.py", tmp_path, gone)).read_text()
    logged: list[str] = []
    accepted: list[bool] = []
    job = SimpleNamespace(id="1008.server", in_ms_mom=lambda: first)
    module: Any = ModuleType("pbs")
    module.EXECJOB_PROLOGUE, module.EXECJOB_EPILOGUE = 64, 128
    module.event = lambda: SimpleNamespace(
        job=job, type=getattr(module, kind), accept=lambda: accepted.append(True)
    )
    module.logjobmsg = lambda job_id, text: logged.append(f"{job_id} {text}")
    sys.modules["pbs"] = module
    try:
        exec(compile(source, "<hook>", "exec"), {"__name__": "<hook>"})  # noqa: S102  # this is how PBS runs hooks
    finally:
        del sys.modules["pbs"]
    return logged, accepted == [True]


@pytest.mark.parametrize(("kind", "seconds"), [("EXECJOB_PROLOGUE", 60), ("EXECJOB_EPILOGUE", 120)])
def test_the_hook_asks_on_the_first_host(tmp_path: Path, kind: str, seconds: int) -> None:
    assert event(tmp_path, kind, "exit 0") == ([], True)
    assert (tmp_path / "calls").read_text() == f"--wait {seconds} 1008.server\n"
    names = {line.partition("=")[0] for line in (tmp_path / "environment").read_text().splitlines()}
    assert names <= {"PWD", "OLDPWD", "SHLVL", "_"}


def test_the_hook_does_nothing_elsewhere(tmp_path: Path) -> None:
    assert event(tmp_path, "EXECJOB_EPILOGUE", "exit 0", first=False) == ([], True)
    assert not (tmp_path / "calls").exists()


def test_what_goes_wrong_is_logged_and_accepted(tmp_path: Path) -> None:
    said = event(tmp_path, "EXECJOB_EPILOGUE", "echo still there >&2; exit 1")
    assert said == (["1008.server dockerjob: still there"], True)


def test_without_the_tool_the_hook_is_silent(tmp_path: Path) -> None:
    assert event(tmp_path, "EXECJOB_EPILOGUE", "") == ([], True)
