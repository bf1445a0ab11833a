# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``integration/job_starter.sh``: what would have run on the host becomes COMMAND, word by word."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from site_files import INTEGRATION, LSF_JOB, OPT, SGE_JOB, run

WORDS = [
    "",
    "a b",
    "it's",
    '"',
    "$HOME",
    "$(id)",
    "`id`",
    "\\",
    "new\nline",
    "end\n",
    "ü",
    "*",
    "-n",
    ";",
    "&&",
    "#",
]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed release: the site files, and a wrapper and a ``dockerjob`` that write down how they are called."""
    root = tmp_path_factory.mktemp("release")
    shutil.copytree(INTEGRATION, root / "integration")
    (root / "bin").mkdir()
    recorder = (
        f"#!{sys.executable} -I\nimport json, os, sys\n"
        f"print(json.dumps({{'argv': sys.argv[1:], 'environment': dict(os.environ)}}))\nsys.exit(7)\n"
    )
    wrapper = root / "bin/hpc_submit_dockerjob"
    wrapper.write_text(recorder)
    wrapper.chmod(0o755)
    return root


def start(release: Path, *argv: str, environment: Mapping[str, str] = LSF_JOB, **more: str) -> Any:
    # Grid Engine gives a starter no arguments of its own.
    name = "gridengine/starter_method.sh" if "SGE_TASK_ID" in environment else "job_starter.sh"
    return run(
        [str(release / "integration" / name), *argv],
        {"APPLICATION": "mpihello:1", **environment, **more},
        release,
    )


def request(release: Path, *argv: str, **more: Any) -> dict[str, str]:
    done = start(release, *argv, **more)
    assert done.returncode == 7, done.stderr
    called = json.loads(done.stdout)
    assert called["argv"] == []
    environment: dict[str, str] = called["environment"]
    return environment


def executed(command: str, cwd: Path, shell: str = "/bin/bash") -> list[str]:
    """What a command does, run as the agent runs COMMAND; the printed words, each ended by a NUL."""
    done = run([shell, "-c", command], {"PATH": "/usr/bin:/bin"}, cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_words_stay_words(release: Path, shell: str) -> None:
    command = request(release, "printf", "%s\\0", *WORDS)["COMMAND"]
    assert executed(command, release, shell) == WORDS


@settings(max_examples=25, deadline=None)
@given(words=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1, max_size=3))
def test_any_words_stay_words(release: Path, words: list[str]) -> None:
    command = request(release, "printf", "%s\\0", *words)["COMMAND"]
    assert executed(command, release) == words


def test_plain_words_are_left_as_they_are(release: Path) -> None:
    made = request(release, "mpirun", "-hostfile", "system/machines", "simpleFoam", "-parallel")
    assert made["COMMAND"] == "mpirun -hostfile system/machines simpleFoam -parallel"
    assert made["JOBDIR"] == str(release)
    assert "JOBDIR" not in request(release, "true", STAGE_OUT="*")


def test_the_users_jobdir_and_variables_stay(release: Path) -> None:
    made = request(release, "true", JOBDIR="/scratch/alice", ODD="a\nb", COMMAND="true")
    assert (made["JOBDIR"], made["ODD"], made["APPLICATION"]) == ("/scratch/alice", "a\nb", "mpihello:1")
    assert {**LSF_JOB, **made} == made


def test_the_command_wins_and_the_user_is_told(release: Path) -> None:
    done = start(release, "true", COMMAND="mpirun old")
    assert json.loads(done.stdout)["environment"]["COMMAND"] == "true"
    assert (
        done.stderr == "job_starter: the job's own command is run; COMMAND of the environment is not used\n"
    )


@pytest.mark.parametrize(
    ("script", "arguments", "printed"),
    [
        (
            "#!/bin/bash\n#BSUB -n 2\nprintf '%s\\0' \"$1\" '$x' \"${BASH_VERSION:+bash}\"\n",
            ["it's"],
            ["it's", "$x", "bash"],
        ),
        ("#! /bin/sh -e\nfalse\nprintf 'never\\0'\n", [], None),
        ("#!/usr/bin/env bash\ncat <<'X'\na\nX\nprintf '\\0'", [], ["a\n"]),
        ("printf '%s\\0' first", [], ["first"]),
    ],
)
def test_a_spooled_script_is_handed_over_as_text(
    release: Path, tmp_path: Path, script: str, arguments: list[str], printed: list[str] | None
) -> None:
    job_file = tmp_path / "1795434166.102"
    (spooled := tmp_path / "1795434166.102.shell").write_text(script)
    made = request(release, str(spooled), *arguments, LSB_JOBFILENAME=str(job_file))
    spooled.unlink()  # no container sees it
    if printed is None:
        assert run(["/bin/sh", "-c", made["COMMAND"]], {"PATH": "/usr/bin:/bin"}).returncode == 1
    else:
        assert executed(made["COMMAND"], tmp_path) == printed


def test_a_script_of_another_language_or_of_the_users_is_named(release: Path, tmp_path: Path) -> None:
    (spooled := tmp_path / "1.2.shell").write_text("#!/usr/bin/python3\nprint(1)\n")
    made = request(release, str(spooled), LSB_JOBFILENAME=str(tmp_path / "1.2"))
    assert made["COMMAND"] == str(spooled)
    (script := tmp_path / "run.sh").write_text("#!/bin/bash\nmpirun true\n")
    assert request(release, str(script), "a b")["COMMAND"] == f"{script} 'a b'"


def test_a_script_too_long_for_a_variable_is_named(release: Path, tmp_path: Path) -> None:
    (spooled := tmp_path / "1.2.shell").write_text("#!/bin/bash\n" + "true\n" * 30000)
    made = request(release, str(spooled), LSB_JOBFILENAME=str(tmp_path / "1.2"))
    assert made["COMMAND"] == str(spooled)


@pytest.mark.parametrize("always", [True, False])
def test_a_script_that_calls_the_wrapper_runs_as_before(release: Path, tmp_path: Path, always: bool) -> None:
    script = tmp_path / "old.sh"
    script.write_text(
        f"#!/bin/sh\nexport APPLICATION=own:1 COMMAND=own\n{release}/bin/hpc_submit_dockerjob\n"
    )
    script.chmod(0o755)
    made = request(release, *([] if always else ["--if-asked"]), str(script))
    assert (made["APPLICATION"], made["COMMAND"]) == ("own:1", "own")
    made = request(release, f"{release}/bin/hpc_submit_dockerjob", COMMAND="exported")
    assert made["COMMAND"] == "exported"


def test_a_comment_is_no_call(release: Path, tmp_path: Path) -> None:
    (script := tmp_path / "new.sh").write_text("#!/bin/sh\n# hpc_submit_dockerjob\ntrue\n")
    assert request(release, str(script))["COMMAND"] == str(script)


def test_without_an_application_only_what_asks_is_for_containers(release: Path) -> None:
    done = start(release, "--if-asked", "/bin/echo", "a", "b  c", "$HOME", APPLICATION="")
    assert (done.returncode, done.stdout) == (0, "a b  c $HOME\n")
    done = start(release, "/bin/echo", "a", APPLICATION="")
    assert (done.returncode, done.stdout) == (201, "")
    assert "APPLICATION is not set" in done.stderr


def test_without_the_tool_other_jobs_run_and_container_jobs_say_what_is_missing(tmp_path: Path) -> None:
    if Path(OPT).exists():
        pytest.skip(f"this machine has a {OPT}")
    (tmp_path / "integration").mkdir()
    shutil.copy(INTEGRATION / "job_starter.sh", tmp_path / "integration")
    assert start(tmp_path, "--if-asked", "/bin/echo", "a", APPLICATION="").stdout == "a\n"
    done = start(tmp_path, "true")
    assert (done.returncode, done.stdout) == (203, "")
    assert done.stderr.startswith(f"job_starter: there is no {OPT}/bin/hpc_submit_dockerjob on ")
    assert start(tmp_path).returncode == 201


def test_the_line_that_lsf_writes_into_the_job_file(release: Path, tmp_path: Path) -> None:
    """The job file of OpenLava, with the starter put before the script's name."""
    script = tmp_path / "1.102.shell"
    script.write_text("#!/bin/bash\nprintf '%s\\0' \"two  words\"\n")
    script.chmod(0o700)
    text = (
        f"#! /bin/sh\n\n$LSB_TRAPSIGS\n# LSBATCH: User input\n{release}/integration/job_starter.sh "
        '$LSB_JOBFILENAME.shell\nExitStat=$?\nwait\n# LSBATCH: End user input\ntrue\nexit `expr $? "|" $ExitStat`\n'
    )
    (job_file := tmp_path / "1.102").write_text(text)
    environment = {**LSF_JOB, "APPLICATION": "mpihello:1", "LSB_JOBFILENAME": str(job_file)}
    done = run(["/bin/sh", str(job_file)], environment)
    assert done.returncode == 7, done.stderr
    assert executed(json.loads(done.stdout)["environment"]["COMMAND"], tmp_path) == ["two  words"]


@pytest.mark.parametrize(
    ("mode", "line", "says"),
    [("posix_compliant", "#!/bin/false", "posix"), ("unix_behavior", "#!/bin/bash", "bash")],
)
def test_grid_engine_s_shell_runs_the_script_in_containers_and_out_of_them(
    release: Path, tmp_path: Path, mode: str, line: str, says: str
) -> None:
    spool = tmp_path / "job_scripts"
    spool.mkdir()
    script = spool / "2"
    script.write_text(f'{line}\nprintf \'%s\\0\' "${{BASH_VERSION:+bash}}${{BASH_VERSION-posix}}" "$1"\n')
    script.chmod(0o755)
    environment = {
        **SGE_JOB,
        "JOB_SCRIPT": str(script),
        "SGE_STARTER_SHELL_PATH": "/bin/sh",
        "SGE_STARTER_SHELL_START_MODE": mode,
        "SGE_STARTER_USE_LOGIN_SHELL": "false",
    }
    made = request(release, str(script), "a b", environment=environment)
    inside = executed(made["COMMAND"], tmp_path)
    outside = start(release, str(script), "a b", environment=environment, APPLICATION="")
    assert inside == outside.stdout.split("\0")[:-1]
    assert inside[0].startswith(says)
    assert inside[1] == "a b"


def test_a_line_of_qrsh_stays_a_line(release: Path) -> None:
    line = 'echo a; echo "b  c"'
    made = request(release, line, environment=SGE_JOB)
    assert made["COMMAND"] == line
    done = start(release, line, environment=SGE_JOB, APPLICATION="")
    assert done.stdout == "a\nb  c\n"
