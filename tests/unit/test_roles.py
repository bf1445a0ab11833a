# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a role says of its variables, what it sets and what it uses are the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerjob_core import names

ROLES = Path(__file__).resolve().parents[2] / "roles"
NAMES = sorted(path.name for path in ROLES.iterdir() if (path / "meta/argument_specs.yml").exists())
MOVING_DEFAULT = re.compile(r"\{\{.*\}\}")

SECCOMP = json.loads((ROLES / "job_host/files/seccomp.json").read_text())
ADDED = {
    "get_mempolicy",
    "mbind",
    "migrate_pages",
    "move_pages",
    "process_vm_readv",
    "process_vm_writev",
    "set_mempolicy",
}


def load(role: str, path: str) -> dict[str, Any]:
    file = ROLES / role / path
    return (yaml.safe_load(file.read_text()) or {}) if file.exists() else {}


def options(role: str) -> dict[str, dict[str, Any]]:
    specs: dict[str, dict[str, Any]] = load(role, "meta/argument_specs.yml")["argument_specs"]["main"][
        "options"
    ]
    return specs


def test_every_role_has_a_specification() -> None:
    assert sorted(path.name for path in ROLES.iterdir() if path.is_dir()) == NAMES


@pytest.mark.parametrize("role", NAMES)
def test_defaults_and_specification_name_the_same_variables(role: str) -> None:
    defaults = load(role, "defaults/main.yml")
    assert sorted(defaults) == sorted(
        name for name, spec in options(role).items() if not spec.get("required")
    )


@pytest.mark.parametrize("role", NAMES)
def test_defaults_and_specification_have_the_same_values(role: str) -> None:
    defaults = load(role, "defaults/main.yml")
    said = {name: spec.get("default") for name, spec in options(role).items() if not spec.get("required")}
    assert said == defaults


@pytest.mark.parametrize("role", NAMES)
def test_variables_carry_the_name_of_their_role(role: str) -> None:
    assert [name for name in load(role, "defaults/main.yml") if not name.startswith(f"{role}_")] == []
    assert [name for name in load(role, "vars/main.yml") if not name.startswith(f"_{role}_")] == []


@pytest.mark.parametrize("role", NAMES)
def test_every_variable_is_used(role: str) -> None:
    files = [
        path for path in (ROLES / role).rglob("*") if path.is_file() and "argument_specs" not in path.name
    ]
    text = "\n".join(path.read_text(errors="replace") for path in files)
    unused = [
        name
        for name in (*load(role, "defaults/main.yml"), *load(role, "vars/main.yml"))
        if len(re.findall(rf"\b{name}\b", text)) < 2
    ]
    assert unused == []


@pytest.mark.parametrize("role", NAMES)
def test_every_role_says_what_it_is_for(role: str) -> None:
    assert (ROLES / role / "README.md").read_text().startswith(f"# {role}\n")


def test_the_broker_s_role_is_on_the_keys_that_names_makes() -> None:
    first, end = names.JOB_KEYS
    assert load("etcd", "vars/main.yml")["_etcd_broker_permissions"] == [
        {"key": first, "range_end": end},
        {"prefix": f"{names.BOOKKEEPING}/"},
    ]
    assert all(first <= names.job_prefix(job_id) < end for job_id in ("1", "9", "999999999_12"))
    assert not first <= names.BOOKKEEPING < end


def test_the_seccomp_profile_is_docker_s_with_one_entry_more() -> None:
    *docker_s, ours = SECCOMP["syscalls"]
    assert SECCOMP["defaultAction"] == "SCMP_ACT_ERRNO"
    assert set(ours["names"]) == ADDED
    assert len(docker_s) == 27


def test_the_seccomp_profile_still_forbids_what_makes_a_host_fall() -> None:
    allowed = {
        name
        for entry in SECCOMP["syscalls"]
        if entry["action"] == "SCMP_ACT_ALLOW" and not entry.get("includes", {}).get("caps")
        for name in entry["names"]
    }
    assert allowed.isdisjoint(
        {"mount", "bpf", "init_module", "kexec_load", "open_by_handle_at", "unshare", "setns"}
    )
    assert allowed >= ADDED
