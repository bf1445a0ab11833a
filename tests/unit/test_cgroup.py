# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job's cgroup on a host: where it is, what it counts in v1 and v2, and that nothing unknown is a number."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from dockerjob.schedulers import job_cgroups
from dockerjob_core import cgroup
from dockerjob_core.allocation import Allocation, HostSlots
from dockerjob_core.cgroup import Hierarchies, JobCgroup, Usage, bound_to, place, traffic
from dockerjob_core.errors import HostError

V1 = """\
32 30 0:27 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
33 32 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw
34 32 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:11 - cgroup cgroup rw,cpu,cpuacct
35 32 0:30 / /sys/fs/cgroup/memory rw,nosuid shared:12 - cgroup cgroup rw,memory
36 32 0:31 / /sys/fs/cgroup/blkio rw,nosuid shared:13 - cgroup cgroup rw,blkio
37 32 0:32 / /sys/fs/cgroup/systemd rw,nosuid shared:14 - cgroup cgroup rw,name=systemd
38 1 254:0 / / rw - ext4 /dev/vda rw
"""
V2 = """\
26 25 0:23 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
38 1 254:0 / / rw - ext4 /dev/vda rw
"""
CPU_STAT = "usage_usec 642024\nuser_usec 478389\nsystem_usec 163635\nnr_periods 0\n"
IO_STAT = (
    "254:0 rbytes=4096 wbytes=1024 rios=1 wios=2 dbytes=0 dios=0\n254:16 rbytes=1 wbytes=2 rios=1 wios=1\n"
)
NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0
dj0123456789ab: 5000  9    0    0    0     0          0         0     7000      10    0    0    0     0       0
dj000000000000:   11  1    0    0    0     0          0         0       22       1    0    0    0     0       0
"""


def test_hierarchies() -> None:
    v1 = Hierarchies.of(V1)
    assert v1.controllers["cpuacct"] == v1.controllers["cpu"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert v1.controllers["memory"] == "/sys/fs/cgroup/memory"
    assert v1.unified == "/sys/fs/cgroup/unified"
    assert {Path(point).name for point in v1.points} == {
        "cpu,cpuacct",
        "memory",
        "blkio",
        "systemd",
        "unified",
    }
    assert (Hierarchies.of(V2).controllers, Hierarchies.of(V2).points) == ({}, ("/sys/fs/cgroup",))


@pytest.mark.parametrize(
    ("above", "parent", "path"),
    [
        ("/lab/node1", "/lab/node1/dockerjob_748", "/lab/node1/dockerjob_748"),
        ("/", "/dockerjob_748", "/dockerjob_748"),
        ("hpc.slice", "hpc-dockerjob_748.slice", "/hpc.slice/hpc-dockerjob_748.slice"),
        (
            "hpc-jobs.slice",
            "hpc-jobs-dockerjob_748.slice",
            "/hpc.slice/hpc-jobs.slice/hpc-jobs-dockerjob_748.slice",
        ),
    ],
)
def test_place(above: str, parent: str, path: str) -> None:
    assert place("dockerjob_748", above) == (parent, path)


@pytest.mark.parametrize("above", ["", "lab", "/lab/../x", "/lab/", "-.slice", "a--b.slice", "a b.slice"])
def test_what_is_no_place_is_said(above: str) -> None:
    with pytest.raises(HostError, match="holds no path of a cgroup and no slice"):
        place("dockerjob_748", above)


def test_a_host_that_is_not_prepared(tmp_path: Path) -> None:
    assert JobCgroup.of("748", str(tmp_path / "missing")) is None
    (tmp_path / "parent").write_text("/lab\n")
    made = JobCgroup.of("748", str(tmp_path / "parent"))
    assert made
    assert (made.parent, made.exists()) == ("/lab/dockerjob_748", False)


def files(directory: Path, **contents: str) -> None:
    directory.mkdir(parents=True)
    for name, text in contents.items():
        (directory / name.replace("__", ".")).write_text(text)


def v2(tmp_path: Path, **contents: str) -> JobCgroup:
    files(tmp_path / "job", **contents)
    return JobCgroup("/job", "/job", Hierarchies({}, str(tmp_path)))


def test_v2(tmp_path: Path) -> None:
    job = v2(tmp_path, cpu__stat=CPU_STAT, memory__peak="70975488\n", io__stat=IO_STAT)
    assert job.usage() == Usage(0.642, 0.478, 0.164, 70975488, 4097, 1026)


def test_v2_before_memory_peak_and_without_io(tmp_path: Path) -> None:
    job = v2(tmp_path, cpu__stat=CPU_STAT, memory__current="70975488\n")
    assert job.usage() == Usage(0.642, 0.478, 0.164)


def test_v2_that_has_read_and_written_nothing(tmp_path: Path) -> None:
    job = v2(tmp_path, io__stat="")
    assert (job.usage().block_read, job.usage().block_written) == (0, 0)


def test_v1_with_devices_unknown(tmp_path: Path) -> None:
    files(tmp_path / "cpuacct/job", cpuacct__usage="642024817\n", cpuacct__stat="user 47\nsystem 16\n")
    files(tmp_path / "memory/job", memory__max_usage_in_bytes="70975488\n", memory__peak="1\n")
    files(tmp_path / "blkio/job", blkio__throttle__io_service_bytes_recursive="Total 0\n")
    files(tmp_path / "unified/job", cpu__stat="usage_usec 1\n", io__stat=IO_STAT)
    names = ("cpuacct", "memory", "blkio")
    job = JobCgroup(
        "/job", "/job", Hierarchies({name: f"{tmp_path}/{name}" for name in names}, f"{tmp_path}/unified")
    )
    ticks = os.sysconf("SC_CLK_TCK")
    assert job.usage() == Usage(0.642, round(47 / ticks, 3), round(16 / ticks, 3), 70975488)


def test_a_cgroup_that_is_gone_has_used_what_nobody_knows(tmp_path: Path) -> None:
    job = JobCgroup("/job", "/job", Hierarchies({}, str(tmp_path)))
    assert job.usage() == Usage()
    assert set(Usage().as_dict().values()) == {None}


def test_it_is_removed_with_what_a_container_left_in_it(tmp_path: Path) -> None:
    for point in ("a", "b"):
        (tmp_path / point / "job/0123/child").mkdir(parents=True)
    job = JobCgroup(
        "/job", "/job", Hierarchies({"a": f"{tmp_path}/a", "c": f"{tmp_path}/c"}, f"{tmp_path}/b")
    )
    assert job.exists()
    job.remove()
    assert not job.exists()
    job.remove()


def test_one_in_use_is_waited_for_and_then_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A directory that is not empty is what a cgroup with a process in it is to rmdir(2).
    busy = tmp_path / "job/busy"
    files(tmp_path / "job", busy="")
    job = JobCgroup("/job", "/job", Hierarchies({}, str(tmp_path)))
    threading.Timer(0.1, busy.unlink).start()
    job.remove()
    assert not job.exists()
    monkeypatch.setattr(cgroup, "PATIENCE", 0.1)
    files(tmp_path / "job", busy="")
    begin = time.monotonic()
    with pytest.raises(HostError, match="job is still in use"):
        job.remove()
    assert time.monotonic() - begin < 5


class TestBoundTo:
    def group(self, tmp_path: Path, name: str, cpus: str, file: str = "cpuset.cpus") -> Hierarchies:
        (tmp_path / "cpuset" / name).mkdir(parents=True)
        (tmp_path / "cpuset" / name / file).write_text(f"{cpus}\n")
        return Hierarchies({"cpuset": f"{tmp_path}/cpuset"}, f"{tmp_path}/unified")

    def test_lsf_and_which_run_of_a_job(self, tmp_path: Path) -> None:
        patterns = job_cgroups(Allocation("lsf", 19, 3, (HostSlots("n1", 1),)), 2001)
        self.group(tmp_path, "lsf/c1/job.19.1.1", "1")
        self.group(tmp_path, "lsf/c1/job.19[33].1.1", "2")
        found = self.group(tmp_path, "lsf/c1/job.19[3].7.100", "4-5")
        assert bound_to(patterns, found) == "4-5"
        time.sleep(0.02)
        self.group(tmp_path, "lsf/c1/job.19[3].9.200", "6")
        assert bound_to(patterns, found) == "6"

    @pytest.mark.parametrize("top", ["slurm", "slurm_n1"])
    def test_slurm(self, tmp_path: Path, top: str) -> None:
        patterns = job_cgroups(Allocation("slurm", 11, None, (HostSlots("n1", 1),)), 2001)
        self.group(tmp_path, f"{top}/uid_2002/job_11", "0")
        self.group(tmp_path, f"{top}/uid_2001/job_111", "1")
        found = self.group(tmp_path, f"{top}/uid_2001/job_11", "2,4")
        assert bound_to(patterns, found) == "2,4"

    def test_v2(self, tmp_path: Path) -> None:
        patterns = job_cgroups(Allocation("slurm", 11, None, (HostSlots("n1", 1),)), 2001)
        self.group(tmp_path, "system.slice/n1_slurmstepd.scope/job_11", "0-3", "cpuset.cpus.effective")
        assert bound_to(patterns, Hierarchies({}, f"{tmp_path}/cpuset")) == "0-3"

    def test_none(self, tmp_path: Path) -> None:
        found = self.group(tmp_path, "lsf/c1/job.19.1.1", "")
        assert bound_to(("lsf/*/job.19.*",), found) is None
        assert bound_to(("lsf/*/job.20.*",), found) is None
        assert bound_to((), found) is None
        assert bound_to(("lsf/*/job.19.*",), Hierarchies()) is None


def test_traffic(tmp_path: Path) -> None:
    file = tmp_path / "dev"
    file.write_text(NET_DEV)
    assert traffic(("dj0123456789ab",), str(file)) == (7000, 5000)
    assert traffic(("dj0123456789ab", "dj000000000000"), str(file)) == (7022, 5011)
    assert traffic(("dj0123456789ab", "djgone"), str(file)) is None
    assert traffic((), str(file)) is None
    used = Usage(cpu=1.0).with_traffic((7000, 5000))
    assert (used.network_received, used.network_sent, used.cpu) == (7000, 5000, 1.0)
    assert Usage(cpu=1.0).with_traffic(None) == Usage(cpu=1.0)


def test_a_hierarchy_is_found_by_its_name_in_proc_and_only_as_a_whole() -> None:
    found = Hierarchies.of("31 30 0:29 /slurm /mnt/slurm rw - cgroup cgroup rw,memory\n" + V1)
    assert found.point("memory") == "/sys/fs/cgroup/memory"
    assert found.point("cpu,cpuacct") == "/sys/fs/cgroup/cpu,cpuacct"
    assert found.point("name=systemd") == "/sys/fs/cgroup/systemd"
    assert found.point("") == "/sys/fs/cgroup/unified"
    assert found.point("rdma") is None
