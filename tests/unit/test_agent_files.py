# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent reads and writes: the job's description, host files, ssh, the log."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pytest
from dockerjob_agent import files, log, mpi, spec, ssh
from dockerjob_agent.spec import usable_shell
from dockerjob_core.errors import ConfigError, RequestError

RAW: dict[str, Any] = {
    "job_id": "102",
    "node_index": 1,
    "nodes": [
        {"name": "102_node_0", "host": "node1", "slots": 2, "address": "10.128.0.1"},
        {"name": "102_node_1", "host": "node2", "slots": 4, "address": "10.128.0.2"},
    ],
    "interface": "eth1",
    "prefix_length": 24,
    "jobdir": "/scratch/case",
    "hostfile": None,
    "shell": "/bin/bash",
    "lease_id": 123,
    "lifetime": None,
    "discovery_timeout": 60,
    "ssh_port": 2222,
    "etcd": {"socket": "/run/dockerjob/relay/etcd.sock", "server_name": "etcd"},
}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDTjcKb4ZxYtd+NcqXQNWsXnW2E/86GeHsHg94Trcjz4 102_node_0"


def parsed(**changes: Any) -> spec.JobSpec:
    return spec.parse(json.dumps({**RAW, **changes}))


def test_spec_is_parsed_once() -> None:
    job = parsed()
    assert job.me.name == "102_node_1"
    assert not job.is_master
    assert [node.slots for node in job.nodes] == [2, 4]
    assert job.etcd_target == "unix:/run/dockerjob/relay/etcd.sock"
    assert not job.verbose


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"node_index": 2}, "node_index 2 is not one of 2 nodes"),
        ({"job_id": "1; rm"}, "not a job id"),
        ({"job_id": "103"}, "called '102_node_0'"),
        ({"etcd": {}}, "lacks 'socket'"),
        ({"lease_id": None}, "not valid"),
    ],
)
def test_spec_that_makes_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed(**changes)


def test_missing_spec_says_where(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="started by the broker"):
        spec.load(tmp_path)


def test_environment_is_optional(tmp_path: Path) -> None:
    assert spec.load_environment(tmp_path) == {}
    (tmp_path / "environment.json").write_text('{"A": "b"}')
    assert spec.load_environment(tmp_path) == {"A": "b"}


def test_host_files() -> None:
    nodes = parsed().nodes
    assert mpi.hostfile(nodes) == "102_node_0 slots=2\n102_node_1 slots=4\n"
    assert mpi.machinefile(nodes) == "102_node_0:2\n102_node_1:4\n"


def test_job_hostfile_is_written_inside_jobdir(tmp_path: Path) -> None:
    path = mpi.write_job_hostfile(parsed().nodes, tmp_path, "system/machines")
    assert path == tmp_path / "system/machines"
    assert path.read_text().startswith("102_node_0 slots=2\n")


@pytest.mark.parametrize("relative", ["../machines", "/etc/machines", "link/machines", "a/../../b"])
def test_job_hostfile_never_leads_out(tmp_path: Path, relative: str) -> None:
    jobdir = tmp_path / "jobdir"
    jobdir.mkdir()
    (jobdir / "link").symlink_to(tmp_path)
    with pytest.raises(RequestError, match="leads out of JOBDIR"):
        mpi.write_job_hostfile(parsed().nodes, jobdir, relative)


def test_job_hostfile_replaces_a_link(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("mine")
    (tmp_path / "machines").symlink_to(target)
    mpi.write_job_hostfile(parsed().nodes, tmp_path, "machines")
    assert target.read_text() == "mine"


CONTROL = (
    "OMPI_MCA_oob_tcp_if_include",
    "PRTE_MCA_prte_if_include",
    "PMIX_MCA_ptl_tcp_if_include",
    "HYDRA_IFACE",
    "I_MPI_HYDRA_IFACE",
)
"""What Open MPI 4, Open MPI 5, MPICH and Intel MPI start and watch their ranks over."""


def test_environment_of_command() -> None:
    """The user's value wins over the image's, the image's over the defaults."""
    environment = mpi.job_environment(
        {
            "PATH": "/opt/of/bin",
            "OMPI_MCA_plm_rsh_agent": "image",
            "SUPERVISOR_ENABLED": "1",
            mpi.STARTED: "1.0",
        },
        {"HYDRA_IFACE": "ib0"},
        "eth1",
        Path("/run/dockerjob/node"),
    )
    assert environment["PATH"] == "/opt/of/bin"
    assert environment["OMPI_MCA_plm_rsh_agent"] == "image"
    assert environment["HYDRA_IFACE"] == "ib0"
    assert environment["OMPI_MCA_orte_default_hostfile"] == "/run/dockerjob/node/hostfile"
    assert environment["I_MPI_HYDRA_HOST_FILE"] == "/run/dockerjob/node/machinefile"
    assert not {"SUPERVISOR_ENABLED", mpi.STARTED} & environment.keys()


@pytest.mark.parametrize(("node", "said"), [(None, "eth1"), ("rdma_cm", "eth1"), ("uverbs0", None)])
def test_ucx_chooses_itself_where_there_is_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str | None, said: str | None
) -> None:
    monkeypatch.setattr(mpi, "INFINIBAND", tmp_path)
    if node:
        (tmp_path / node).touch()
    assert mpi.defaults("eth1", tmp_path, "ssh").get("UCX_NET_DEVICES") == said


def test_the_interconnect_is_the_sites_to_say_and_then_the_users() -> None:
    """``container.environment`` and the user's own variables come with the request, in this order."""
    site = {"UCX_NET_DEVICES": "mlx5_0:1", "FI_PROVIDER": "mlx", "OMPI_MCA_btl_tcp_if_include": "ib0"}
    environment = mpi.job_environment({}, {**site, "FI_PROVIDER": "tcp"}, "eth1", Path("/node"))
    assert {name: environment[name] for name in site} == {**site, "FI_PROVIDER": "tcp"}
    # What starts the ranks stays on the job's network.
    assert {environment[name] for name in CONTROL} == {"eth1"}


def test_the_images_own_variables_get_their_names_again() -> None:
    """Those that would have misled the agent's loader and libraries were kept from it by the host."""
    given = {"DOCKERJOB_IMAGE_LD_PRELOAD": "/opt/vendor/hooks.so", "PATH": "/bin"}
    environment = mpi.job_environment(given, {}, "eth1", Path("/run/dockerjob/node"))
    assert environment["LD_PRELOAD"] == "/opt/vendor/hooks.so"
    assert not [name for name in environment if name.startswith("DOCKERJOB_")]


def portable(directory: Path) -> str:
    """Make what the portable infrastructure has at its mount point, and return that."""
    for name in ("bin/sh", "bin/ssh", "bin/ssh-keygen", "sbin/sshd"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).touch(mode=0o755)
    return str(directory)


def test_programs_are_the_portable_ones_where_these_are(tmp_path: Path) -> None:
    nothing = str(tmp_path / "nothing")
    assert (ssh.ssh_program(nothing), ssh.keygen_program(nothing)) == ("ssh", "ssh-keygen")
    assert ssh.sshd_program(nothing) == "/usr/sbin/sshd"
    infra = portable(tmp_path)
    assert ssh.ssh_program(infra) == f"{infra}/bin/ssh"
    assert ssh.sshd_program(infra) == f"{infra}/sbin/sshd"


def test_launchers_are_told_the_path_of_ssh_only_where_there_is_one() -> None:
    """In PATH nothing of ours is to be found, and MPI libraries look there."""
    directory = Path("/run/dockerjob/node")
    assert "HYDRA_LAUNCHER_EXEC" not in mpi.defaults("eth1", directory, "ssh")
    told = mpi.defaults("eth1", directory, "/opt/dockerjob/bin/ssh")
    for name in ("OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent", "HYDRA_LAUNCHER_EXEC"):
        assert told[name] == "/opt/dockerjob/bin/ssh"
    assert told["HYDRA_LAUNCHER"] == told["I_MPI_HYDRA_BOOTSTRAP"] == "ssh"


def test_command_gets_a_shell_that_there_is(tmp_path: Path) -> None:
    missing = str(tmp_path / "zsh")
    assert usable_shell(missing, str(tmp_path / "nothing")) == missing
    infra = portable(tmp_path)
    assert usable_shell("/bin/bash", infra) == "/bin/bash"
    assert usable_shell(missing, infra) == "/bin/sh"


def test_ssh_config_asks_nothing_and_trusts_only_the_job() -> None:
    text = ssh.ssh_config()
    for setting in (
        "Host *_node_*",
        "Port 2222",
        "IdentityFile /run/dockerjob/node/id_ed25519",
        "StrictHostKeyChecking yes",
        "BatchMode yes",
        "UpdateHostKeys no",
    ):
        assert setting in text


def test_set_env_is_one_line_with_quoting() -> None:
    line = ssh.set_env_line(
        {"PATH": "/a:/b", "OPTS": 'say "hi" \\ you', "HOME": "/root", "BASH_FUNC_x%%": "() {", "TWO": "a\nb"},
        "/bin/sh",
    )
    assert line == 'SetEnv "OPTS=say \\"hi\\" \\\\ you" "PATH=/a:/b" "SHELL=/bin/sh"\n'
    assert ssh.set_env_line({}, "/bin/\n") == ""


def test_sshd_takes_keys_only() -> None:
    text = ssh.sshd_config(2222, {"PATH": "/bin"}, "/run/dockerjob/node", "/bin/sh")
    assert "UsePAM no\n" in text
    assert "PasswordAuthentication no\n" in text
    assert text.endswith('SetEnv "PATH=/bin" "SHELL=/bin/sh"\n')


def test_known_hosts_and_authorized_keys() -> None:
    line = ssh.known_hosts([("102_node_0", "10.128.0.1", KEY)], 2222)
    assert line == f"[102_node_0]:2222,[10.128.0.1]:2222 {KEY.rpartition(' ')[0]}\n"
    assert ssh.authorized_keys([KEY]) == f"{KEY}\n"
    assert ssh.hosts([("10.128.0.1", "102_node_0")]) == "127.0.0.1\tlocalhost\n10.128.0.1\t102_node_0\n"


@pytest.mark.parametrize(
    "text",
    ["", "ssh-rsa AAAA", KEY + "\n" + KEY, 'command="x" ' + KEY, KEY + " evil key", KEY.replace("A", "*", 1)],
)
def test_only_a_plain_key_is_a_key(text: str) -> None:
    assert ssh.PUBLIC_KEY.fullmatch(KEY)
    assert not ssh.PUBLIC_KEY.fullmatch(text)


def test_generated_key_is_one(tmp_path: Path) -> None:
    for _ in range(2):
        assert ssh.generate_key(tmp_path, "102_node_0").wait() == 0
    assert ssh.PUBLIC_KEY.fullmatch((tmp_path / "id_ed25519.pub").read_text().strip())
    assert (tmp_path / "id_ed25519").stat().st_mode & 0o777 == 0o600


def test_write_in_place_keeps_the_inode(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("a much longer text than before\n")
    inode = path.stat().st_ino
    files.write_in_place(path, "short\n")
    assert (path.read_text(), path.stat().st_ino) == ("short\n", inode)


def test_write_atomic_replaces(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    files.write_atomic(path, "one\n")
    files.write_atomic(path, "two\n", 0o644)
    assert path.read_text() == "two\n"
    assert os.listdir(tmp_path) == ["known_hosts"]


def test_log_lines() -> None:
    now = datetime.datetime(2015, 10, 7, 8, 26, 6, 247285)
    text = 'PING TO "10.20.30.1" AS "99_node_0" SUCCESSFUL'
    assert log.line(text, now) == f"2015-10-07 08:26:06.247285 {text}\n"
    assert log.line("two\nlines", now).endswith("two lines\n")


def test_an_error_is_kept_as_one_line(tmp_path: Path) -> None:
    story = log.StoryLog(tmp_path)
    story.also_to(str(tmp_path / "agent.log"))
    story.error("no\n  way")
    assert (tmp_path / "agent_error").read_text() == "no way\n"
    assert (tmp_path / "agent.log").read_text().count("ERROR: no") == 2
