# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all files of ``integration/`` have in common."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from dockerjob_core import errors
from site_files import INTEGRATION, OPT


def files() -> list[Path]:
    return sorted(path for path in INTEGRATION.rglob("*") if path.is_file() and path.suffix != ".pyc")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(INTEGRATION)))
def test_every_file_says_what_an_administrator_has_to_know(path: Path) -> None:
    text = path.read_text()
    assert "SPDX-License-Identifier: GPL-3.0-or-later" in text
    for heading in ("Installed:", "Fails:", "Sources:"):
        assert heading in text, heading
    for named in re.findall(rf"{OPT}/integration/([a-z_/.]+\.sh)", text):
        assert os.access(INTEGRATION / named, os.X_OK), named
    assert os.access(path, os.X_OK) == text.startswith("#!")


def test_statuses_that_are_tried_again_are_those_of_the_errors() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.DockerjobError)
    ]
    again = sorted({kind.exit_status for kind in kinds if kind.exit_status >= 210})
    for name in ("lsb.applications", "lsb.queues"):
        text = (INTEGRATION / "lsf" / name).read_text()
        [values] = re.findall(r"^REQUEUE_EXIT_VALUES *= *(.*)$", text, re.MULTILINE)
        assert [int(value) for value in values.split()] == again
