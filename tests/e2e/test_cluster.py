# SPDX-License-Identifier: GPL-3.0-or-later
"""What an admin may do to a cluster that is in use, without harm."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from dockerjob_lab.client import Cluster

pytestmark = pytest.mark.lab


def etcd_files(cluster: Cluster) -> dict[str, str]:
    """Checksums of the configuration and certificates of all members."""
    directories = {host: cluster.path(host, "/etc/etcd") for host in cluster.pids}
    return {
        f"{host}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for host, directory in directories.items()
        for path in directory.glob("*")
        if path.is_file()
    }


def test_a_controller_without_the_clusters_certificates_is_stopped_before_it_breaks_etcd(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Whoever clones anew and applies the playbook has an authority that no member knows."""
    before = etcd_files(cluster)
    done = cluster.playbook("cluster_setup.yml", "--tags", "pki,etcd", "-e", f"pki_directory={tmp_path}/pki")
    assert done.returncode == 2
    said = " ".join(done.stdout.split())
    assert "trusts an authority that is not in" in said
    assert f"{tmp_path}/pki" in said
    assert before
    assert etcd_files(cluster) == before
    with cluster.kvs() as kvs:
        kvs.get_prefix("/dockerjob/")
