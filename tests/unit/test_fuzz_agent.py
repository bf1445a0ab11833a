# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node reads: its specification, what other nodes publish, where it shall write a hostfile."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
from dockerjob_agent import mpi, peers, spec, ssh
from dockerjob_agent.discovery import Discovery
from dockerjob_agent.log import StoryLog
from dockerjob_agent.tree import Change, Leaf
from dockerjob_core import names
from dockerjob_core.errors import ConfigError, RequestError
from fuzz import JSON, TEXT, mutated
from hypothesis import example, given
from hypothesis import strategies as st
from test_agent_files import KEY, RAW, parsed


@given(mutated(RAW))
@example("[" * 5000)
@example({**RAW, "lease_id": float("inf")})
@example([])
def test_a_specification_is_whole_or_refused(document: Any) -> None:
    try:
        job = spec.parse(json.dumps(document))
    except ConfigError:
        return
    assert 0 <= job.node_index < len(job.nodes)
    assert [node.name for node in job.nodes] == [
        names.node_name(job.job_id, index) for index in range(len(job.nodes))
    ]
    assert job.hostfile is None or isinstance(job.hostfile, str)


@given(JSON.map(json.dumps) | st.text(max_size=30) | st.just("[" * 5000))
def test_an_environment_is_strings_or_refused(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    directory = tmp_path_factory.mktemp("ro")
    (directory / "environment.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        environment = spec.load_environment(directory)
    except ConfigError:
        return
    assert all(isinstance(text, str) for pair in environment.items() for text in pair)


OTHER_KEY = KEY.replace("IDTj", "IDTk").replace("node_0", "node_1")
PUBLISHED = (
    TEXT
    | st.sampled_from(["10.128.0.1", "10.128.0.2", "10.128.0.3", "::1", "True", "False", KEY, OTHER_KEY])
    | st.sampled_from(
        [f"{KEY}\n{OTHER_KEY}", f"{KEY} x", f'command="id" {KEY}', f"{KEY}\r", KEY[:40], f" {KEY}"]
    )
    | st.from_regex(ssh.PUBLIC_KEY)
)
LEAF: st.SearchStrategy[Leaf] = st.sampled_from(["IP", "SSHPUBKEY", "READY", "FINISH"])
CHANGES = st.lists(st.builds(Change, LEAF, st.sampled_from([0, 1, None]), PUBLISHED | st.none()), max_size=8)


@given(CHANGES)
@example([Change("IP", 0, "10.128.0.1"), Change("SSHPUBKEY", 0, f"{KEY}\n{OTHER_KEY}")])
@example([Change("IP", 0, "10.128.0.1"), Change("SSHPUBKEY", 0, KEY)])
def test_whatever_a_node_publishes_its_peers_files_hold_keys_and_addresses_only(
    tmp_path_factory: pytest.TempPathFactory, changes: list[Change]
) -> None:
    directory = tmp_path_factory.mktemp("rw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "verify", lambda *_: False)
        discovery = Discovery(parsed(), directory, StoryLog(directory), lambda event: None, lambda: None)
        discovery.take(changes, [])
        discovery.close()

    def lines(name: str) -> list[str]:
        path = directory / name
        return path.read_bytes().decode().split("\n")[:-1] if path.exists() else []

    assert len(lines("authorized_keys")) <= 2
    assert all(ssh.PUBLIC_KEY.fullmatch(line) for line in lines("authorized_keys"))
    known = re.compile(r"\[102_node_([01])\]:2222,\[10\.128\.0\.[12]\]:2222 ssh-ed25519 [A-Za-z0-9+/=]+")
    assert all(known.fullmatch(line) for line in lines("known_hosts"))
    ours = {"127.0.0.1\tlocalhost", "10.128.0.1\t102_node_0", "10.128.0.2\t102_node_1"}
    assert set(lines("hosts")) <= ours
    assert all(line.isprintable() for line in lines("agent.log"))


@given(st.dictionaries(TEXT | st.from_regex(r"[A-Za-z_]\w{0,9}", fullmatch=True), TEXT, max_size=5))
def test_a_users_variables_make_one_line_of_sshds_configuration(environment: dict[str, str]) -> None:
    line = ssh.set_env_line(environment, "/bin/sh")
    assert line.count("\n") == 1
    assert line.strip().isprintable()
    words = shlex.split(line.removeprefix("SetEnv "))
    assert [word.partition("=")[::2] for word in words] == sorted(
        [
            *((name, value) for name, value in environment.items() if ssh._exportable(name, value)),
            ("SHELL", "/bin/sh"),
        ]
    )


PART = st.sampled_from(["..", ".", "", "a", "system", "out", "in", "file", "-x", "é", " ", "a" * 300])


@given(st.lists(PART, min_size=1, max_size=4).map("/".join))
@example("out/machines")
@example("in/machines")
@example("link")
def test_a_hostfile_is_written_inside_of_jobdir_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, relative: str
) -> None:
    base = tmp_path_factory.mktemp("case")
    jobdir, outside = base / "jobdir", base / "outside"
    for directory in (jobdir / "system", outside):
        directory.mkdir(parents=True)
    (outside / "theirs").write_text("theirs")
    (jobdir / "file").write_text("mine")
    (jobdir / "out").symlink_to(outside)
    (jobdir / "in").symlink_to("system")
    (jobdir / "link").symlink_to(outside / "theirs")
    try:
        target = mpi.write_job_hostfile(parsed().nodes, jobdir, relative)
    except RequestError:
        pass
    else:
        assert target.resolve().is_relative_to(jobdir)
        assert target.read_text() == mpi.hostfile(parsed().nodes)
    assert [path.name for path in outside.iterdir()] == ["theirs"]
    assert (outside / "theirs").read_text() == "theirs"
    assert {path.name for path in base.iterdir()} == {"jobdir", "outside"}


def test_the_keys_of_these_tests_are_keys() -> None:
    assert ssh.PUBLIC_KEY.fullmatch(KEY)
    assert ssh.PUBLIC_KEY.fullmatch(OTHER_KEY)
