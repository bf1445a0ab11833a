# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``integration/job_gone.sh`` waits for the end of what is left, and is never the reason for a failure."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from site_files import INTEGRATION, LSF_JOB, OPT, SGE_JOB, run


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A release of its own whose ``dockerjob`` answers as the files ``show`` and ``gc`` say."""
    shutil.copytree(INTEGRATION, tmp_path / "integration")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/dockerjob"
    program.write_text(
        f'#!/bin/sh\ncd {tmp_path}\necho "$*" >>calls\n/usr/bin/env >environment\nread -r answer <$1\n'
        "sed -i '1{$!d}' $1\neval \"$answer\"\n"
    )
    program.chmod(0o755)
    (tmp_path / "gc").write_text("exit 0\n")
    (tmp_path / "show").write_text("exit 201\n")
    return tmp_path


def wait(site: Path, *argv: str, environment: Mapping[str, str] = LSF_JOB, timeout: float = 30) -> Any:
    done = run([str(site / "integration/job_gone.sh"), *argv], environment, timeout=timeout)
    assert (done.returncode, done.stdout) == (0, "")
    return done


def calls(site: Path) -> list[str]:
    path = site / "calls"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("argv", "environment", "job"),
    [
        ([], LSF_JOB, "102"),
        ([], {**LSF_JOB, "LSB_JOBINDEX": "6"}, "102_6"),
        ([], SGE_JOB, "2"),
        ([], {**SGE_JOB, "SGE_TASK_ID": "3"}, "2_3"),
        ([], {"PBS_JOBID": "123.server"}, "123"),
        ([], {"PBS_JOBID": "123[4].server.site.example"}, "123_4"),
        ([], {"SLURM_JOB_ID": "11", "PBS_JOBID": "99"}, "11"),
        (["--wait", "5", "44719435381"], {}, "44719435381"),
        (["123[4].server", "alice", "users", "x; id", "9", "", "", "batch", "", "0"], {}, "123_4"),
        (["19[3]"], {}, "19_3"),
        (["19_3"], LSF_JOB, "19_3"),
        (["--wait", "soon", "8"], {}, "8"),
    ],
)
def test_it_knows_the_job(site: Path, argv: list[str], environment: dict[str, str], job: str) -> None:
    assert wait(site, *argv, environment=environment).stderr == ""
    assert calls(site) == [f"show {job} --json"]


@pytest.mark.parametrize(
    ("argv", "environment"),
    [
        ([], {}),
        (["--wait"], {}),
        ([""], {}),
        (["--json"], {}),
        (["1;id"], {}),
        (["1_2_3"], {}),
        (["_1"], {}),
        (["9" * 19], {}),
        ([], {"LSB_JOBID": "1\n2"}),
        ([], {"LSB_JOBID": "$(id)", "LSB_JOBINDEX": "0"}),
        ([], {"PBS_JOBID": "123[x].server"}),
    ],
)
def test_what_names_no_job_is_not_asked_about(
    site: Path, argv: list[str], environment: dict[str, str]
) -> None:
    wait(site, *argv, environment=environment)
    assert calls(site) == []


def test_it_waits_and_root_has_it_removed(site: Path) -> None:
    (site / "show").write_text("exit 0\nexit 211\nexit 201\n")
    assert wait(site).stderr == ""
    gc = ["gc --job 102"] if os.geteuid() == 0 else []
    show = ["show 102 --json"]
    assert calls(site) == [*show, *gc, *show, *gc, *show]


@pytest.mark.parametrize("status", [1, 2, 126, 127, 200, 202, 203, 213])
def test_who_gets_no_answer_goes(site: Path, status: int) -> None:
    (site / "show").write_text(f"exit {status}\n")
    began = time.monotonic()
    assert wait(site).stderr == ""
    assert time.monotonic() - began < 5
    assert calls(site) == ["show 102 --json"]


def test_after_its_time_it_says_so_and_goes(site: Path) -> None:
    (site / "show").write_text("exit 0\n")
    began = time.monotonic()
    done = wait(site, "--wait", "2")
    assert done.stderr == "job_gone: after 2 s job 102 still has something on its hosts; the reaper goes on\n"
    assert 1 < time.monotonic() - began < 8


def test_a_program_that_hangs_is_ended(site: Path) -> None:
    script = site / "integration/job_gone.sh"
    script.write_text(script.read_text().replace("ANSWER=30", "ANSWER=1"))
    (site / "show").write_text("exec sleep 60\n")
    done = wait(site, "--wait", "0")
    assert "still has something" in done.stderr


def test_without_the_tool_it_does_nothing(site: Path) -> None:
    (site / "bin/dockerjob").unlink()
    if not Path(OPT).exists():
        assert wait(site).stderr == ""


def test_the_program_gets_nothing_of_the_jobs_environment(site: Path, tmp_path: Path) -> None:
    hostile = {
        **LSF_JOB,
        "PATH": str(tmp_path),
        "PYTHONPATH": "/evil",
        "ENV": "/evil",
        "IFS": "0",
        "DOCKERJOB_X": "1",
    }
    wait(site, environment=hostile)
    names = {line.partition("=")[0] for line in (site / "environment").read_text().splitlines()}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == {"PATH", "LC_ALL"}
    assert calls(site) == ["show 102 --json"]
