# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the site's own parts say: bjobs, config.yml, etcd's records, what a host is told to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerjob.config import SystemSettings, load_config
from dockerjob.schedulers import proof
from dockerjob_core import ipam, jobdir, node
from dockerjob_core.allocation import Allocation, HostSlots
from dockerjob_core.errors import BatchError, ConfigError, HostError, KvsError, PolicyError
from dockerjob_core.jobtree import _tree
from dockerjob_core.kvs import KeyValue
from dockerjob_core.node_task import perform
from dockerjob_core.schedulers import lsf
from dockerjob_core.schedulers.base import Answer
from fuzz import JSON, TEXT, mutated
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_config import GOOD

CLAIM = Allocation("lsf", 748, None, (HostSlots("node1", 2), HostSlots("node2", 1)))
RECORD = {"JOBID": "748", "JOBINDEX": "0", "STAT": "RUN", "USER": "alice", "EXEC_HOST": "2*node1:node2"}
ANSWER = {"COMMAND": "bjobs", "JOBS": 1, "RECORDS": [RECORD]}
IN_PLACE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def proven(output: str) -> bool:
    try:
        record = lsf.record([Answer(output)], CLAIM)
        proof.check(record, lsf.SYSTEM, SystemSettings(), proof.Claim(CLAIM, "alice", 1000), proof.RUNNING)
    except (PolicyError, BatchError):
        return False
    return True


@given(TEXT, mutated(ANSWER), TEXT)
def test_only_a_record_that_says_so_is_a_proof(before: str, answer: Any, after: str) -> None:
    if proven(before + json.dumps(answer) + after):
        [record] = [one for one in answer["RECORDS"] if one.get("JOBID") == "748" and "ERROR" not in one][:1]
        assert (record["STAT"], record["USER"]) == ("RUN", "alice")
        assert lsf.hosts_of(record["EXEC_HOST"]) == {"node1": 2, "node2": 1}


@given(st.text(max_size=80) | JSON.map(json.dumps))
@example("[" * 100_000 + "{" + "]}")
@example('{"RECORDS": ' + "[" * 100_000 + "}")
def test_noise_is_no_proof(output: str) -> None:
    assert not proven(output)


@given(
    st.lists(st.sampled_from(["2*", "node1", ":", "0", "*", "-", " ", "a.b", "999999*"]), max_size=8).map(
        "".join
    )
)
def test_hosts_and_slots_of_lsf_are_read_or_refused(text: str) -> None:
    try:
        hosts = lsf.hosts_of(text)
    except BatchError:
        return
    assert all(slots >= 1 for slots in hosts.values())
    assert set(":".join(hosts)) <= set(text) | {":"}


@IN_PLACE
@given(mutated(yaml.safe_load(GOOD)))
def test_a_configuration_is_whole_or_refused(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "config.yml"
    path.write_text(json.dumps(document))
    try:
        config = load_config(path)
    except ConfigError as error:
        wrong = str(error)
    else:
        assert ipam.NetworkPool(config.network.pool, config.network.prefix_length, config.network.vlans).tags
        assert all("sha256:" in application.image for application in config.applications.values())
        return
    assert str(path) in wrong


@IN_PLACE
@given(st.binary(max_size=60) | TEXT.map(lambda text: text.encode(errors="replace")))
@example(b"a: 2001-99-99")
@example(b"a: !!python/object/apply:os.system [id]")
@example(b"a: 0b2")
@example(b"[" * 5000)
@example(b"a: &a [*a]")
@example(b"network: {pool: 10.0.0.0/8, vlans: '" + b"9" * 5000 + b"'}")
def test_a_file_of_any_bytes_is_no_configuration(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yml"):
        load_config(path)


@given(
    TEXT,
    st.integers(-5, 40),
    st.lists(st.sampled_from(["1", "-", ",", " ", "4094", "4095", "x", "٣"])).map("".join),
)
@example("10.0.0.0/8", 24, "9" * 5000)
@example("10.0.0.0/8", 24, "1-" + "9" * 30)
def test_a_pool_is_whole_or_refused(supernet: str, prefix_length: int, vlans: str) -> None:
    for network in (supernet, "10.0.0.0/8"):
        try:
            pool = ipam.NetworkPool(network, prefix_length, vlans)
        except ConfigError:
            continue
        assert pool.tags <= set(range(1, 4095))
        assert 8 <= pool.prefix_length <= 30


@given(mutated({"lease_id": 1, "node_count": 2, "user": "alice", "hosts": ["node1"]}))
def test_a_job_record_of_etcds_is_read_or_refused(record: Any) -> None:
    item = KeyValue("/dockerjob/jobs/748", json.dumps(record).encode(), 0, 1, 1)
    try:
        tree = _tree(item, "748", None)
    except KvsError:
        return
    assert type(tree.lease_id) is int
    assert type(tree.node_count) is int


@given(TEXT, st.sampled_from(["present", "absent"]))
def test_a_host_does_nothing_for_what_is_no_job(job_id: str, state: str) -> None:
    result = perform({"job_id": f"{job_id}/x", "state": state, "docker_host": "unix:///no"}, check_mode=False)
    assert result["failed"] is True
    assert "not a job id" in result["msg"]


FILE = {"name": "spec.json", "content_b64": "e30=", "mode": "0444", "owner": "root"}


@given(st.fixed_dictionaries(dict.fromkeys(FILE, TEXT)))
def test_a_file_for_a_job_is_written_into_its_directory_or_refused(
    tmp_path_factory: pytest.TempPathFactory, option: dict[str, str]
) -> None:
    root = tmp_path_factory.mktemp("run")
    directory = jobdir.JobDirectory("748", str(root))
    directory.create()
    try:
        for field, value in option.items():
            file = node._file({**FILE, "name": "x", field: value})
            directory.fill([file], [], 0, 0)
            assert {path.name for path in Path(directory.path, "ro").iterdir()} == {file.name}
            directory.remove()
            directory.create()
    except HostError:
        pass
    assert {path.relative_to(root).parts[0] for path in root.rglob("*")} <= {"jobs"}
