# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/security.md and docs/exit-status.md name tests that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/security.md").read_text()
FILES = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
NAMED = sorted(set(re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", PAGE)))
THREATS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.partition("## Threats")[2].partition("\n## ")[0].splitlines()
    if line.startswith("|")
][2:]


def names_in(path: Path) -> set[str]:
    """All test functions and classes of a file."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_is_there(file: str, name: str) -> None:
    assert file in FILES
    assert not name or name in names_in(FILES[file])


@pytest.mark.parametrize("row", THREATS, ids=lambda row: row[0][:40])
def test_every_threat_has_a_defence_and_a_test(row: list[str]) -> None:
    assert len(row) == 3
    assert all(row)
    assert re.search(r"`test_\w+\.py(::\w+)?`", row[2])


def test_every_file_of_the_suite_stands_against_a_threat() -> None:
    suite = {path.name for path in (ROOT / "tests/security").glob("test_*.py")}
    assert len(THREATS) >= 20
    assert suite - {file for file, _ in NAMED} == set()


def test_the_tests_of_the_exit_statuses_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)…?`", (ROOT / "docs/exit-status.md").read_text()))
    known = {name for path in FILES.values() for name in names_in(path)}
    assert named
    assert {prefix for prefix in named if not any(name.startswith(prefix) for name in known)} == set()
