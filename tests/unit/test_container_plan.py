# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the Docker daemon is told."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from dockerjob_core import container, node_options
from dockerjob_core.container import ContainerSpec, Gpus, Limits, Mount, Ulimit

SPEC = ContainerSpec("748", 0, "openfoam", 1000, 1001, groups=(20, 30), env={"B": "2", "A": "1 x"})


def host_config(spec: ContainerSpec) -> container.Payload:
    config: container.Payload = container.payload(spec)["HostConfig"]
    return config


def test_the_container_is_bounded() -> None:
    body = container.payload(SPEC)
    assert body["User"] == "1000:1001"
    assert body["Hostname"] == "748_node_0"
    assert body["Env"] == ["A=1 x", "B=2", "NVIDIA_VISIBLE_DEVICES=void"]
    config = body["HostConfig"]
    assert config["GroupAdd"] == ["20", "30"]
    assert config["CapDrop"] == ["ALL"]
    assert config["SecurityOpt"] == ["no-new-privileges:true"]
    assert (config["NetworkMode"], config["Privileged"], config["IpcMode"]) == ("none", False, "private")
    assert config["RestartPolicy"] == {"Name": "no"}
    assert config["ReadonlyRootfs"] is True


def test_what_may_be_written_is_limited() -> None:
    temporary = host_config(replace(SPEC, limits=Limits(tmp_size=5000)))["Tmpfs"]
    assert temporary.keys() == {"/tmp", "/var/tmp"}
    assert all("size=5000" in options.split(",") for options in temporary.values())
    assert all({"nosuid", "nodev"} <= set(options.split(",")) for options in temporary.values())


def test_the_host_s_mandatory_access_control_stays_on() -> None:
    """Unnamed, the daemon confines with docker-default or a label of SELinux where the host has either."""
    assert host_config(SPEC)["SecurityOpt"] == ["no-new-privileges:true"]
    named = host_config(replace(SPEC, apparmor="site-hpc"))["SecurityOpt"]
    assert named == ["no-new-privileges:true", "apparmor=site-hpc"]


LOOSENING = [
    "CapAdd",
    "PidMode",
    "UTSMode",
    "UsernsMode",
    "Binds",
    "DeviceCgroupRules",
    "Sysctls",
    "Runtime",
    "DeviceRequests",
]


@pytest.mark.parametrize("option", LOOSENING)
def test_what_would_loosen_it_has_no_place(option: str) -> None:
    everything = replace(
        SPEC, mounts=(Mount("/a", "/b"),), devices=("/dev/x",), labels={"a": "b"}, seccomp="{}"
    )
    assert option not in host_config(everything)


def test_its_cgroup_is_what_the_host_says_and_nobody_else() -> None:
    assert "CgroupParent" not in host_config(SPEC)
    assert host_config(replace(SPEC, cgroup_parent="/jobs/748"))["CgroupParent"] == "/jobs/748"
    assert "cgroup_parent" not in node_options.SPEC


def test_marks_cannot_be_overridden() -> None:
    labels = container.payload(replace(SPEC, labels={"dockerjob.job": "1", "site": "x"}))["Labels"]
    assert (labels["dockerjob.job"], labels["dockerjob.node"], labels["site"]) == ("748", "748_node_0", "x")


def test_mounts_devices_and_profile() -> None:
    config = host_config(
        replace(SPEC, mounts=(Mount("/a", "/b", True, "rslave"),), devices=("/dev/x",), seccomp="{}")
    )
    assert config["Mounts"] == [
        {
            "Type": "bind",
            "Source": "/a",
            "Target": "/b",
            "ReadOnly": True,
            "BindOptions": {"Propagation": "rslave"},
        }
    ]
    assert config["Devices"] == [
        {"PathOnHost": "/dev/x", "PathInContainer": "/dev/x", "CgroupPermissions": "rw"}
    ]
    assert config["SecurityOpt"][1] == "seccomp={}"


def test_gpus_by_cdi() -> None:
    """As ``docker run --device nvidia.com/gpu=0`` has it."""
    body = container.payload(replace(SPEC, gpus=Gpus("cdi", ("nvidia.com/gpu=0", "amd.com/gpu=all"))))
    requests = body["HostConfig"]["DeviceRequests"]
    assert requests == [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0", "amd.com/gpu=all"]}]
    assert "Runtime" not in body["HostConfig"]
    assert "NVIDIA_VISIBLE_DEVICES=void" in body["Env"]


def test_gpus_by_nvidias_runtime_are_the_sites_and_never_the_images() -> None:
    gpus = Gpus("nvidia", ("nvidia.com/gpu=0", "nvidia.com/gpu=GPU-8f2a:1"))
    image_or_whoever = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "all"}
    body = container.payload(replace(SPEC, gpus=gpus, env=image_or_whoever))
    assert body["HostConfig"]["Runtime"] == "nvidia"
    assert "DeviceRequests" not in body["HostConfig"]
    assert body["Env"] == [
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        "NVIDIA_VISIBLE_DEVICES=0,GPU-8f2a:1",
    ]
    assert "NVIDIA_VISIBLE_DEVICES=void" in container.payload(replace(SPEC, env=image_or_whoever))["Env"]


def test_limits() -> None:
    limits = Limits(1 << 30, 0, 1.5, "0-3", 1 << 20, 100, (Ulimit("memlock", -1, -1),))
    config = host_config(replace(SPEC, limits=limits))
    assert (config["Memory"], config["MemorySwap"]) == (1 << 30, 1 << 30)
    assert (config["CpuQuota"], config["CpuPeriod"], config["CpusetCpus"]) == (150_000, 100_000, "0-3")
    assert config["Ulimits"] == [{"Name": "memlock", "Soft": -1, "Hard": -1}]


def test_swap_is_beyond_memory_and_never_without_its_limit() -> None:
    config = host_config(replace(SPEC, limits=Limits(memory=1 << 30, swap=1 << 20)))
    assert (config["Memory"], config["MemorySwap"]) == (1 << 30, (1 << 30) + (1 << 20))
    assert not {"Memory", "MemorySwap"} & host_config(replace(SPEC, limits=Limits(swap=1 << 20))).keys()


@pytest.mark.parametrize(("cpus", "quota"), [(256.0, 25_600_000), (0.25, 25_000), (0.001, 1_000)])
def test_cpus_may_be_more_than_the_host_has(cpus: float, quota: int) -> None:
    """The daemon would refuse NanoCpus beyond its own; slots need not be CPUs."""
    config = host_config(replace(SPEC, limits=Limits(cpus=cpus)))
    assert (config["CpuQuota"], "NanoCpus" in config) == (quota, False)


def test_no_limit_is_not_mentioned() -> None:
    assert (
        not {"Memory", "MemorySwap", "CpuQuota", "CpuPeriod", "PidsLimit", "ShmSize"}
        & host_config(SPEC).keys()
    )


def digest(spec: ContainerSpec, extra: str = "") -> str:
    mark: str = container.payload(spec, extra)["Labels"]["dockerjob.spec"]
    return mark


CHANGES: dict[str, object] = {
    "job_id": "749",
    "node_index": 1,
    "image": "other",
    "uid": 1,
    "gid": 1,
    "groups": (20,),
    "hostname": "h",
    "entrypoint": ("/bin/sh",),
    "unset": ("LD_PRELOAD",),
    "temporary": ("/data",),
    "env": {"A": "1"},
    "mounts": (Mount("/a", "/b"),),
    "limits": Limits(memory=1),
    "seccomp": "{}",
    "apparmor": "site",
    "devices": ("/dev/x",),
    "gpus": Gpus("cdi", ("nvidia.com/gpu=0",)),
    "cgroup_parent": "/jobs/748",
    "labels": {"a": "b"},
    "run": "1f",
}


def test_the_changes_cover_every_field() -> None:
    assert CHANGES.keys() == {item.name for item in fields(ContainerSpec)}


@pytest.mark.parametrize("field", CHANGES)
def test_every_change_is_another_container(field: str) -> None:
    changed = replace(SPEC, **{field: CHANGES[field]})  # type: ignore[arg-type]
    assert digest(changed) != digest(SPEC)


def test_digest_covers_files_and_is_stable() -> None:
    assert digest(SPEC, "files") != digest(SPEC)
    assert digest(SPEC) == digest(replace(SPEC, env={"A": "1 x", "B": "2"}))
