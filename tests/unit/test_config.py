# SPDX-License-Identifier: GPL-3.0-or-later
"""config.yml: what is wrong is named by its key."""

from __future__ import annotations

from pathlib import Path

import pytest
from dockerjob.config import load_config
from dockerjob_core.errors import ConfigError

GOOD = """
hosts: {node1: {address: 192.0.2.1}}
ansible: {private_key: /k, known_hosts: /h}
etcd: {ca: /ca, cert: /c, key: /k, auth_cert: /a, auth_key: /a}
job_ca: {cert: /c, key: /k}
applications: {"openfoam:1912": {image: "sha256:%s"}}
mounts: [{path: /scratch}]
batch: {lsf: {bjobs: /opt/lsf/bin/bjobs}}
""" % ("0" * 64)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yml"
    path.write_text(text)
    return path


def test_defaults_fill_what_is_left_out(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert config.network.interface == "eth1"
    assert config.limits.lease_ttl == 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("/scratch", "scratch"), r"mounts\.0\.path"),
        (GOOD.replace("address", "adress"), r"hosts\.node1\.address"),
        (GOOD + "surprise: 1\n", "surprise"),
        (GOOD + "limits: {lease_ttl: 1}\n", r"limits\.lease_ttl"),
        (GOOD.replace("lsf: {bjobs: /opt/lsf/bin/bjobs}", "pbs: {}"), r"batch\.pbs"),
        (GOOD.replace("/opt/lsf/bin/bjobs", "bjobs"), r"batch\.lsf\.bjobs"),
        (GOOD + "policy: {hosts: 0}\n", r"policy\.hosts"),
        (GOOD + "policy: {images: ['site/*']}\n", r"applications\.openfoam:1912\.image: .*policy\.images"),
        (GOOD.replace("sha256:", "openfoam:"), r"applications\.openfoam:1912\.image: .*no digest"),
        (GOOD.replace("/scratch", "/"), r"mounts\.0\.path: .*would show"),
        (GOOD.replace("/scratch", "/var"), r"mounts\.0\.path: .*/var/lib/docker"),
        (GOOD.replace("/scratch", "/run/dockerjob"), r"mounts\.0\.path: .*/run$"),
        (GOOD.replace("/scratch", "/etc"), r"mounts\.0\.path: .*/etc/dockerjob"),
        (GOOD.replace("/scratch", "/scratch/../etc/ssh"), r"mounts\.0\.path: .*shortest form, /etc/ssh"),
        (GOOD + "container: {devices: [/dev]}\n", r"container\.devices\.0\.path: .*no path below /dev"),
        (GOOD + "container: {devices: [/dev/mem]}\n", r"container\.devices\.0\.path: .*the host itself"),
        (GOOD + "container: {devices: [/dev/nvme0n1]}\n", r"container\.devices\.0\.path: .*the host itself"),
        (GOOD + "container: {devices: [/dev/mapper/x]}\n", r"container\.devices\.0\.path: .*the host itself"),
        (GOOD + "container: {devices: [/dev/x/../sda]}\n", r"container\.devices\.0\.path"),
        (GOOD + "container: {devices: ['/dev/tty[0-9]']}\n", r"container\.devices\.0\.path: .*host itself"),
        (GOOD + "container: {devices: [{path: /dev/x, permit: root}]}\n", r"container\.devices\.0\.permit"),
        (GOOD + "container: {devices: [{path: /dev/x, rights: m}]}\n", r"container\.devices\.0\.rights"),
        (GOOD + "container: {devices: [1]}\n", r"container\.devices\.0"),
        (GOOD + "container: {gpus: {names: []}}\n", r"container\.gpus\.names"),
        (GOOD + "container: {gpus: {names: [all]}}\n", r"container\.gpus\.names\.0"),
        (
            GOOD + "container: {gpus: {names: [amd.com/gpu=0], driver: nvidia}}\n",
            r"container\.gpus: .*nvidia",
        ),
        (GOOD + "container: {memory_per_slot: 1KiB}\n", r"container\.memory_per_slot"),
        (GOOD + "container: {memory_per_slot: much}\n", r"container\.memory_per_slot"),
        (GOOD + "container: {cpus_per_slot: 0}\n", r"container\.cpus_per_slot"),
        (GOOD + "container: {pids: 0}\n", r"container\.pids"),
        (GOOD + "container: {tmp_size: 0}\n", r"container\.tmp_size"),
        (GOOD + "container: {shm_size: -1}\n", r"container\.shm_size"),
        (GOOD + "container: {apparmor_profile: ''}\n", r"container\.apparmor_profile"),
        (GOOD + "container: {apparmor_profile: unconfined}\n", r"container\.apparmor_profile.*unconfined"),
        (GOOD + "limits: {wall_clock: 0}\n", r"limits\.wall_clock"),
        (GOOD + "policy: {slots: 0}\n", r"policy\.slots"),
        (GOOD + "minimum_gid: 0\n", "minimum_gid"),
        (GOOD.replace("batch: {", "batch: {recheck: 0, "), r"batch\.recheck"),
        ("", "the document"),
        ("{", "no YAML"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_sizes_may_have_units_and_devices_of_the_job_network_pass(tmp_path: Path) -> None:
    text = (
        GOOD + "container: {memory_per_slot: 4GiB, shm_size: 2GB, devices: [/dev/infiniband, /dev/nvidia0]}\n"
    )
    container = load_config(write(tmp_path, text)).container
    assert (container.memory_per_slot, container.shm_size) == (4 << 30, 2_000_000_000)
    assert (container.pids, container.tmp_size) == (4096, 1 << 30)


def test_devices_and_gpus_are_of_applications(tmp_path: Path) -> None:
    text = """container:
  devices: [/dev/infiniband, {path: '/dev/nvidia[0-9]*', applications: ['cuda:*'], required: false, permit: batch}]
  gpus: {names: [nvidia.com/gpu=all], applications: ['cuda:*']}
"""
    container = load_config(write(tmp_path, GOOD + text)).container
    assert [device.rule() for device in container.devices] == [
        {"path": "/dev/infiniband", "required": True, "permit": "always"},
        {"path": "/dev/nvidia[0-9]*", "required": False, "permit": "batch"},
    ]
    assert [device.has("cuda:12") for device in container.devices] == [True, True]
    assert [device.has("openfoam:1912") for device in container.devices] == [True, False]
    assert container.gpus
    assert container.gpus.request() == {"driver": "cdi", "names": ["nvidia.com/gpu=all"]}
    assert not container.gpus.has("openfoam:1912")


def test_locked_memory_is_unlimited_unless_the_site_says_otherwise(tmp_path: Path) -> None:
    """RDMA locks its buffers."""
    ulimits = {
        limit.name: (limit.soft, limit.hard) for limit in load_config(write(tmp_path, GOOD)).container.ulimits
    }
    assert ulimits["memlock"] == (-1, -1)


def test_a_site_may_allow_tags(tmp_path: Path) -> None:
    text = GOOD.replace("sha256:", "site/openfoam:") + "policy: {pinned: false, images: ['site/*']}\n"
    assert load_config(write(tmp_path, text)).policy.images == ("site/*",)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster_setup\.yml"):
        load_config(tmp_path / "none.yml")
