# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's specification from the module's options, and a job's directory."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any

import pytest
from dockerjob_core import jobdir, node
from dockerjob_core.command import CommandError, run
from dockerjob_core.container import Gpus, Mount
from dockerjob_core.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path

SPEC: dict[str, Any] = {
    "node_index": 2,
    "image": "openfoam",
    "uid": 1000,
    "gid": 1000,
    "groups": [],
    "hostname": None,
    "entrypoint": ["/bin/true"],
    "env": {},
    "mounts": [],
    "files": [],
    "writable_files": [],
    "overlays": [],
    "infra": "image",
    "infra_directory": "/opt/dockerjob-infra/current",
    "injected_overlays": [],
    "interface": "eth1",
    "address": "10.8.0.3/24",
    "vlan": 31,
    "mtu": 1500,
    "limits": None,
    "seccomp_profile": None,
    "apparmor_profile": None,
    "devices": [],
    "device_cgroups": [],
    "gpus": None,
    "labels": {},
}


def parsed(**changes: Any) -> node.NodeSpec:
    return node.parse("748", "/run/dockerjob", "br-job", {**SPEC, **changes})


def file(name: str, content: str = "x", mode: str = "0444", owner: str = "root") -> dict[str, str]:
    return {
        "name": name,
        "content_b64": base64.b64encode(content.encode()).decode(),
        "mode": mode,
        "owner": owner,
    }


class TestParse:
    def test_mounts_that_every_job_has(self) -> None:
        overlays = [
            {"file": "rw/hosts", "target": "/etc/hosts"},
            {"file": "ro/passwd", "target": "/etc/passwd"},
        ]
        base = "/run/dockerjob/jobs/748"
        assert parsed(overlays=overlays).container.mounts == (
            Mount(f"{base}/ro", "/run/dockerjob/job", read_only=True),
            Mount(f"{base}/rw", "/run/dockerjob/node"),
            Mount("/run/dockerjob/relay", "/run/dockerjob/relay", read_only=True),
            Mount(f"{base}/rw/hosts", "/etc/hosts"),
            Mount(f"{base}/ro/passwd", "/etc/passwd", read_only=True),
        )

    def test_a_target_the_site_names_stays_the_sites(self) -> None:
        given = {
            "source": "/srv/relay",
            "target": "/run/dockerjob/relay",
            "read_only": True,
            "propagation": "rslave",
        }
        mounts = parsed(mounts=[given]).container.mounts
        assert [mount.source for mount in mounts if mount.target == "/run/dockerjob/relay"] == ["/srv/relay"]

    @pytest.mark.parametrize("path", ["../shadow", "ro/../../x", "/etc/shadow", "hosts", "rw/", "other/x"])
    def test_overlay_of_something_else(self, path: str) -> None:
        with pytest.raises(HostError, match="not a file of the job's directory"):
            parsed(overlays=[{"file": path, "target": "/etc/hosts"}])

    def test_limits_that_are_not_set(self) -> None:
        limits = {"memory": 5, "cpus": None, "ulimits": [{"name": "core", "soft": 0, "hard": 0}]}
        made = parsed(limits=limits).container.limits
        assert (made.memory, made.cpus, made.ulimits[0].name) == (5, None, "core")

    def test_cpus_that_are_said_come_before_those_of_a_cgroup(self) -> None:
        limits = parsed(limits={"cpuset": "0", "cpuset_of": ["lsf/*/job.1.*"]}).container.limits
        assert limits.cpuset == "0"
        assert parsed(limits={"cpuset_of": ["no/such"]}).container.limits.cpuset is None

    def test_devices_and_gpus_are_what_this_host_has(self) -> None:
        rules = [
            {"path": "/dev/nu[l]l", "required": True, "permit": "always"},
            {"path": "/dev/dockerjob-none", "required": False, "permit": "always"},
            {"path": "/dev/zero", "required": False, "permit": "batch"},
        ]
        gpus = {"driver": "cdi", "names": ["nvidia.com/gpu=0"]}
        made = parsed(devices=rules, device_cgroups=["no/such"], gpus=gpus).container
        assert made.devices == ("/dev/null",)
        assert made.gpus == Gpus("cdi", ("nvidia.com/gpu=0",))

    def test_files_are_part_of_the_specification(self) -> None:
        def digest(**changes: Any) -> str:
            mark: str = parsed(**changes).payload()["Labels"]["dockerjob.spec"]
            return mark

        plain = digest(files=[file("a")])
        assert plain == digest(files=[file("a")])
        assert plain != digest(writable_files=[file("a")])
        assert plain != digest(files=[file("a", "y")])
        assert plain != digest(files=[file("a", mode="0400")])

    @pytest.mark.parametrize("wrong", [{"content_b64": "%"}, {"mode": "rw"}])
    def test_wrong_file_is_named(self, wrong: dict[str, str]) -> None:
        with pytest.raises(HostError, match="file hosts:"):
            parsed(files=[{**file("hosts"), **wrong}])


class TestDirectory:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> jobdir.JobDirectory:
        made = jobdir.JobDirectory("748", str(tmp_path))
        made.create()
        made.fill([], [jobdir.JobFile("agent.log", b"one\ntwo\n", 0o644)], os.getuid(), os.getgid())
        return made

    def test_log(self, directory: jobdir.JobDirectory) -> None:
        assert directory.agent_log() == "one\ntwo"
        assert directory.exit_status() is None

    def test_log_through_a_link_is_not_read(self, directory: jobdir.JobDirectory, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret")
        log = tmp_path / "jobs/748/rw/agent.log"
        log.unlink()
        log.symlink_to(tmp_path / "secret")
        assert directory.agent_log() is None

    def test_writable_part_replaced_by_a_link_is_not_read(
        self, directory: jobdir.JobDirectory, tmp_path: Path
    ) -> None:
        (tmp_path / "jobs/748/rw").rename(tmp_path / "moved")
        (tmp_path / "jobs/748/rw").symlink_to(tmp_path / "moved")
        assert directory.agent_log() is None

    def test_remove_is_idempotent_and_follows_nothing(
        self, directory: jobdir.JobDirectory, tmp_path: Path
    ) -> None:
        precious = tmp_path / "precious"
        (precious / "deep").mkdir(parents=True)
        (tmp_path / "jobs/748/rw/a").mkdir()
        (tmp_path / "jobs/748/rw/a/b").symlink_to(precious)
        assert directory.remove()
        assert not directory.exists()
        assert (precious / "deep").is_dir()
        assert not directory.remove()

    def test_deeper_than_recursion_goes(self, directory: jobdir.JobDirectory, tmp_path: Path) -> None:
        here = os.open(tmp_path / "jobs/748/rw", os.O_RDONLY)
        for _ in range(1500):
            os.mkdir("d", dir_fd=here)
            deeper = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = deeper
        os.close(here)
        assert directory.remove()

    def test_link_in_its_place_is_removed_itself(self, tmp_path: Path) -> None:
        (tmp_path / "jobs").mkdir()
        (tmp_path / "target").mkdir()
        (tmp_path / "jobs/748").symlink_to(tmp_path / "target")
        assert jobdir.JobDirectory("748", str(tmp_path)).remove()
        assert (tmp_path / "target").is_dir()

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "a\0b"])
    def test_names_stay_inside(self, tmp_path: Path, name: str) -> None:
        directory = jobdir.JobDirectory("748", str(tmp_path))
        directory.create()
        with pytest.raises(HostError, match="not the name of a job's file"):
            directory.fill([jobdir.JobFile(name, b"")], [], 0, 0)

    def test_second_directory(self, directory: jobdir.JobDirectory) -> None:
        with pytest.raises(HostError, match=r"cannot make .*/jobs/748: .*exists"):
            directory.create()


class TestLock:
    @pytest.fixture
    def directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> jobdir.JobDirectory:
        monkeypatch.setattr(jobdir, "LOCK_TIMEOUT", 0.1)
        made = jobdir.JobDirectory("748", str(tmp_path))
        made.create()
        return made

    def test_second_run_waits_and_gives_up(self, directory: jobdir.JobDirectory) -> None:
        with directory.locked() as there:
            assert there
            with pytest.raises(HostError, match="still at work on job 748"), directory.locked():
                pass
        with directory.locked() as there:
            assert there

    def test_removed_while_waiting(
        self, directory: jobdir.JobDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever comes second finds that the directory it waited for is none any more."""
        monkeypatch.setattr(directory.__class__, "_lock", lambda self, _: self.remove())
        with directory.locked() as there:
            assert not there

    def test_nothing_to_lock(self, directory: jobdir.JobDirectory) -> None:
        directory.remove()
        with directory.locked() as there:
            assert not there


class TestCommand:
    def test_error_has_the_command_and_what_it_said(self) -> None:
        with pytest.raises(CommandError, match="one; two") as caught:
            run(["sh", "-c", "echo one >&2; echo two >&2; exit 3"])
        assert caught.value.argv[0] == "sh"

    def test_missing_program(self) -> None:
        with pytest.raises(CommandError, match="No such file"):
            run(["nonesuch-program"])

    def test_timeout(self) -> None:
        with pytest.raises(CommandError, match=r"no answer within 0.1 s"):
            run(["sleep", "5"], timeout=0.1)

    def test_clean_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LD_PRELOAD", "")
        assert run(["env"]).stdout.splitlines() == ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"]
