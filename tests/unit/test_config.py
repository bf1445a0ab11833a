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
etcd: {ca: /ca, cert: /c, key: /k}
job_ca: {cert: /c, key: /k}
applications: {"openfoam:1912": {image: "sha256:0"}}
mounts: [{path: /scratch}]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yml"
    path.write_text(text)
    return path


def test_defaults_fill_what_is_left_out(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert config.network.interface == "eth1"
    assert config.limits.lease_ttl == 60


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("/scratch", "scratch"), r"mounts\.0\.path"),
        (GOOD.replace("address", "adress"), r"hosts\.node1\.address"),
        (GOOD + "surprise: 1\n", "surprise"),
        (GOOD + "limits: {lease_ttl: 1}\n", r"limits\.lease_ttl"),
        ("", "the document"),
        ("{", "no YAML"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster_setup\.yml"):
        load_config(tmp_path / "none.yml")
