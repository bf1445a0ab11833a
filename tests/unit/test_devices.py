# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which device nodes a container gets, and which never; what of them needs mknod is in tests/integration."""

from __future__ import annotations

from pathlib import Path

import pytest
from dockerjob_core import cgroup, devices
from dockerjob_core.cgroup import Hierarchies
from dockerjob_core.devices import DeviceNode, DeviceRule, Permitted, choose, look, resolve
from dockerjob_core.errors import HostError

GPU0 = DeviceNode("/dev/nvidia0", 195, 0)
GPU1 = DeviceNode("/dev/nvidia1", 195, 1)
VERBS = DeviceNode("/dev/infiniband/uverbs0", 231, 192, "infiniband/uverbs0")
THERE = {"/dev/nvidia[0-9]*": (GPU0, GPU1), "/dev/infiniband": (VERBS,), "/dev/none": ()}

INFINIBAND = DeviceRule("/dev/infiniband")
GPUS = DeviceRule("/dev/nvidia[0-9]*", permit="batch")

RESTRICTED = "c 1:3 rwm\nc 136:* rwm\nb 8:0 rwm\nc 195:1 rw\nc 231:192 r\n"
"""Of a job that has the second GPU, and may read only from an adapter."""


class TestChoice:
    def test_what_is_there(self) -> None:
        assert choose([INFINIBAND, INFINIBAND], THERE, None) == ("/dev/infiniband/uverbs0",)
        assert choose([DeviceRule("/dev/none", required=False)], THERE, None) == ()

    def test_what_is_missing_is_named(self) -> None:
        with pytest.raises(HostError, match="no device /dev/none on this host"):
            choose([INFINIBAND, DeviceRule("/dev/none")], THERE, None)

    def test_what_the_batch_system_permits(self) -> None:
        """None permitted is no error: the job has asked for none."""
        assert choose([GPUS], THERE, Permitted.of(RESTRICTED)) == ("/dev/nvidia1",)
        assert choose([GPUS], THERE, Permitted.of("")) == ()
        assert choose([GPUS], THERE, Permitted.of("a *:* rwm\n")) == ("/dev/nvidia0", "/dev/nvidia1")
        assert choose([GPUS, INFINIBAND], THERE, Permitted.of("")) == ("/dev/infiniband/uverbs0",)

    def test_a_batch_system_that_does_not_say_permits_nothing(self) -> None:
        assert choose([DeviceRule(GPUS.path, required=False, permit="batch")], THERE, None) == ()
        with pytest.raises(HostError, match=r"nvidia.* the batch system has no devices cgroup"):
            choose([GPUS], THERE, None)

    @pytest.mark.parametrize(
        "node",
        [
            DeviceNode("/dev/infiniband/uverbs1", 1, 1, "mem"),
            DeviceNode("/dev/x", 10, 200, "net/tun"),
            DeviceNode("/dev/x", 5, 1, "console"),
            DeviceNode("/dev/x", 5, 0, "tty"),
            DeviceNode("/dev/kvm", 10, 232),
            DeviceNode("/dev/vfio/12", 243, 0, "vfio/12"),
        ],
        ids=lambda node: node.name or node.path,
    )
    def test_what_opens_the_host_is_refused_by_path_and_by_number(self, node: DeviceNode) -> None:
        with pytest.raises(HostError, match=f"{node.path} is refused: .*the host itself"):
            choose([DeviceRule("/dev/x")], {"/dev/x": (VERBS, node)}, None)


class TestPermitted:
    def test_of_a_list(self) -> None:
        permitted = Permitted.of(RESTRICTED)
        assert GPU1 in permitted
        assert DeviceNode("/dev/pts/7", 136, 7) in permitted
        assert GPU0 not in permitted
        assert VERBS not in permitted, "to read alone is not enough"
        assert DeviceNode("/dev/x", 8, 0) not in permitted, "that is the number of a disk"

    def test_of_the_newest_cgroup_of_the_job(self, tmp_path: Path) -> None:
        v1 = Hierarchies({"devices": str(tmp_path)})
        (tmp_path / "lsf/c/job.7.1.1").mkdir(parents=True)
        file = tmp_path / "lsf/c/job.7.1.1/devices.list"
        file.write_text("c 195:0 rwm\n")
        assert cgroup.permitted_devices(["slurm/*", "lsf/*/job.7.*"], v1) == "c 195:0 rwm\n"
        file.write_text("")
        assert cgroup.permitted_devices(["lsf/*/job.7.*"], v1) == ""
        assert cgroup.permitted_devices(["lsf/*/job.8.*"], v1) is None
        assert cgroup.permitted_devices([], v1) is None

    def test_v2_has_no_list(self, tmp_path: Path) -> None:
        (tmp_path / "devices.list").write_text("a *:* rwm\n")
        assert cgroup.permitted_devices(["."], Hierarchies({}, str(tmp_path))) is None


class TestLook:
    def test_a_device(self) -> None:
        (node,) = look("/dev/null")
        assert (node.path, node.major, node.minor, node.name) == ("/dev/null", 1, 3, "null")
        assert look("/dev/nul[l]") == (node,)

    def test_nothing(self, tmp_path: Path) -> None:
        assert look("/dev/dockerjob-none") == look("/dev/dockerjob-[0-9]") == ()
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to("/dev/null")
        assert look(str(tmp_path)) == look(f"{tmp_path}/*") == ()

    def test_links_and_files_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to("/dev/null")
        (tmp_path / "directory").symlink_to("/dev")
        with pytest.raises(HostError, match="no character device"):
            look(f"{tmp_path}/file")
        for path in ("link", "directory", "directory/null"):
            with pytest.raises(HostError, match="link, to /dev"):
                look(f"{tmp_path}/{path}")
        assert look(f"{tmp_path}/directory/nul[l]") == ()

    def test_a_device_without_a_name_has_none(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(devices, "SYSFS", str(tmp_path))
        (node,) = look("/dev/null")
        assert node.name is None
        (tmp_path / "1:3").mkdir()
        (tmp_path / "1:3/uevent").write_text("MAJOR=1\nMINOR=3\nDEVNAME=mem\nDEVMODE=0666\n")
        with pytest.raises(HostError, match="/dev/null is refused"):
            resolve([DeviceRule("/dev/null")], None)
