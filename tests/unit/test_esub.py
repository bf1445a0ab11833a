# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``integration/lsf/esub.docker`` sets what was asked for, and refuses what can't be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from site_files import INTEGRATION, run

PARAMETERS = (
    'LSB_SUB_JOB_NAME="nm"\nLSB_SUB_QUEUE="normal"\nLSB_SUB_RLIMIT_RUN=600\nLSB_SUB_NUM_PROCESSORS=2\n'
)


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.fixture
def submission(tmp_path: Path) -> Any:
    """Runs esub as mesub does; returns its outcome, the changed options and variables."""

    def submit(*argv: str, parameters: str = PARAMETERS, **more: str) -> tuple[Any, str, str]:
        (tmp_path / "parm").write_text(parameters)
        environment = {
            "PATH": "/usr/bin:/bin",
            "LSB_SUB_ABORT_VALUE": "97",
            "LSB_SUB_PARM_FILE": str(tmp_path / "parm"),
            "LSB_SUB_MODIFY_FILE": str(tmp_path / "modify"),
            "LSB_SUB_MODIFY_ENVFILE": str(tmp_path / "environment"),
            **more,
        }
        done = run([str(INTEGRATION / "lsf/esub.docker"), *argv], environment, tmp_path)
        # stdout would be the input of eexec
        assert done.stdout == ""
        return done, text_of(tmp_path / "modify"), text_of(tmp_path / "environment")

    return submit


def test_the_image_and_the_directory_are_set_and_the_profile(submission: Any) -> None:
    done, options, variables = submission("openfoam:1912", " /scratch/lustre/OF_pitzDaily")
    assert done.returncode == 0, done.stderr
    assert options == 'LSB_SUB3_APP="docker"\n'
    assert variables == 'APPLICATION="openfoam:1912"\nJOBDIR="/scratch/lustre/OF_pitzDaily"\n'


def test_the_users_own_profile_stays(submission: Any) -> None:
    done, options, variables = submission("mpihello:1", parameters=PARAMETERS + 'LSB_SUB3_APP="mine"\n')
    assert (done.returncode, options, variables) == (0, "", 'APPLICATION="mpihello:1"\n')


def test_without_an_image_the_profile_alone_is_set(submission: Any) -> None:
    done, options, variables = submission("")
    assert (done.returncode, options, variables) == (0, 'LSB_SUB3_APP="docker"\n', "")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("Openfoam",), "is no image name"),
        (("a:b:c",), "is no image name"),
        (('x"; touch /tmp/x; "',), "is no image name"),
        (("$(id)",), "is no image name"),
        (("a\nLSB_SUB_QUEUE=root",), "is no image name"),
        (("a", "relative"), "is not an absolute path"),
        (("a", "/x$(id)"), "export it instead"),
        (("a", '/x"'), "export it instead"),
        (("a", "/b", "c"), "too many arguments"),
    ],
)
def test_what_can_not_be_right_is_refused_now(submission: Any, argv: tuple[str, ...], says: str) -> None:
    done, options, variables = submission(*argv)
    assert (done.returncode, options, variables) == (97, "", "")
    assert done.stderr.startswith("esub.docker: ")
    assert says in done.stderr


def test_the_users_text_is_not_run(submission: Any, tmp_path: Path) -> None:
    name = f'LSB_SUB_JOB_NAME="$(touch {tmp_path}/run)`touch {tmp_path}/run`"\n'
    done, options, _ = submission("mpihello:1", parameters=name)
    assert (done.returncode, options) == (0, 'LSB_SUB3_APP="docker"\n')
    assert not (tmp_path / "run").exists()


def test_bmod_changes_nothing_of_it(submission: Any) -> None:
    done, options, variables = submission("mpihello:1", parameters="LSB_SUB_MODIFY=Y\n")
    assert (done.returncode, options, variables) == (0, "", "")


def test_outside_a_submission_it_does_nothing() -> None:
    done = run([str(INTEGRATION / "lsf/esub.docker"), "mpihello:1"], {"PATH": "/usr/bin:/bin"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
