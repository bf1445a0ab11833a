# SPDX-License-Identifier: GPL-3.0-or-later
"""The action in front of job_node: what it calls on a host, and what it makes of the answer."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from ansible_collections.hpc.dockerjob.plugins.action import job_node  # type: ignore[import-untyped]
from dockerjob_core import node_program

ROOT = Path(__file__).parents[2]


def test_the_program_is_named_after_its_sources_as_the_role_does_it() -> None:
    sources = sorted((ROOT / "plugins/module_utils").glob("*.py"))
    joined = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in sources)
    assert node_program.directory().endswith("/" + hashlib.sha256(joined.encode()).hexdigest()[:16])


def test_a_host_without_the_program_says_so() -> None:
    done = subprocess.run(["sh", "-c", job_node.command("/no/such/python")], check=False)
    assert done.returncode == job_node.NOT_INSTALLED


def test_the_interpreter_is_quoted() -> None:
    assert "'/opt/a b/python'" in job_node.command("/opt/a b/python")


def test_an_answer_that_is_no_json_fails_with_its_last_line() -> None:
    result = job_node.parse({"rc": 1, "stdout": "", "stderr": "Traceback\nModuleNotFoundError: docker"})
    assert result["failed"]
    assert "ended with 1 and said: ModuleNotFoundError: docker" in result["msg"]


def test_an_answer_is_taken_as_it_is() -> None:
    assert job_node.parse({"rc": 0, "stdout": '{"changed": true}', "stderr": ""}) == {"changed": True}


def test_the_program_answers_json_on_this_machine(tmp_path: Path) -> None:
    archive = tmp_path / "program.tar"
    script = ROOT / "roles/job_host/files/build_program.sh"
    subprocess.run([script, ROOT / "plugins/module_utils", archive], check=True)
    subprocess.run(["tar", "-C", tmp_path, "-xf", archive], check=True)
    task = '{"options": {"job_id": "no id"}, "check_mode": true}'
    done = subprocess.run(
        ["/usr/bin/python3", "-I", tmp_path], input=task, capture_output=True, text=True, check=True
    )
    assert job_node.parse({"rc": 0, "stdout": done.stdout, "stderr": ""})["failed"]
