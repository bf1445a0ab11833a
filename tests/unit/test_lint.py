# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The static checks themselves: ignores have reasons, and the audit of the lock file tells its outcomes apart."""

from __future__ import annotations

import os
import re
import subprocess
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("agent", "bench", "images", "integration", "lab", "plugins", "tests", "wrapper")
IGNORE = re.compile(r"#\s*(noqa|nosec)\b")
WITH_REASON = re.compile(r"# noqa: [A-Z]+[0-9]+(, [A-Z]+[0-9]+)* {1,2}(# ?|- |\()?\w.{4,}")


def comments() -> list[tuple[str, str]]:
    found = []
    for place in PLACES:
        for path in sorted((ROOT / place).rglob("*.py")):
            with path.open("rb") as file:
                found += [
                    (f"{path.relative_to(ROOT)}:{token.start[0]}", token.string)
                    for token in tokenize.tokenize(file.readline)
                    if token.type == tokenize.COMMENT and IGNORE.search(token.string)
                ]
    return found


def test_every_ignored_finding_has_its_reason() -> None:
    assert len(comments()) > 5
    assert [found for found in comments() if not WITH_REASON.search(found[1])] == []


def test_the_security_rules_are_on_and_what_is_off_says_why() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    lint = tomllib.loads(text)["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    for rule in lint["ignore"]:
        assert re.search(rf'"{rule}",\s+# \w', text), rule
    assert [rule for rule in lint["ignore"] if rule.startswith("S")] == ["S603", "S607"]
    product = ("wrapper", "plugins", "agent")
    for pattern, rules in lint["per-file-ignores"].items():
        assert not (pattern.startswith(product) and any(rule.startswith("S") for rule in rules)), pattern


@pytest.mark.parametrize(
    ("program", "status", "says"),
    [
        ("echo No known vulnerabilities found >&2", 0, "No known vulnerabilities found"),
        (
            "echo 'Found 1 known vulnerability' >&2; echo 'jinja2 2.10 PYSEC-1'; exit 1",
            1,
            "jinja2 2.10 PYSEC-1",
        ),
        (
            "echo 'ERROR: ConnectionError: Max retries exceeded' >&2; exit 1",
            0,
            "skipped: advisories not reachable",
        ),
        ("echo 'usage: pip-audit' >&2; exit 2", 2, "usage: pip-audit"),
    ],
)
def test_a_finding_fails_and_what_is_out_of_reach_is_one_line(
    tmp_path: Path, program: str, status: int, says: str
) -> None:
    fake = tmp_path / "pip-audit"
    fake.write_text(f"#!/bin/sh\n{program}\n")
    fake.chmod(0o755)
    done = subprocess.run(
        [ROOT / "tests/audit.sh"],
        env={**os.environ, "PIP_AUDIT": str(fake)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert says in done.stdout + done.stderr
    assert status or done.stdout.count("\n") == 1
