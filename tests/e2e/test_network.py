# SPDX-License-Identifier: GPL-3.0-or-later
"""Two jobs at the same time on the same hosts: neither reaches the other, or sees its traffic."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator

import pytest
from dockerjob_lab.client import Cluster
from job_fixtures import job

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("nothing_left")]

SERVE = (
    "hostname -I; cd /run/dockerjob/node; exec /opt/dockerjob/bin/python3 -m http.server 5000 >/dev/null 2>&1"
)


@pytest.fixture
def neighbour(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """A job of bob's that serves TCP on its node 0; yields its job id and that node's address."""
    process = cluster.start(job(SERVE), user="bob")
    assert process.stdout is not None
    address = process.stdout.readline().split()[0]
    with cluster.kvs() as kvs:
        keys = [
            item.key for item in kvs.get_prefix("/").items if item.value.decode(errors="ignore") == address
        ]
    yield keys[0].split("/")[1], address
    cluster.run("node1", "pkill", "-INT", "-u", "bob", "-f", "bin/hpc_submit_dockerjob")
    process.communicate(timeout=60)


def test_a_job_reaches_its_own_nodes_and_no_others(cluster: Cluster, neighbour: tuple[str, str]) -> None:
    _, address = neighbour
    command = f"""
reach() {{ timeout 3 bash -c "exec 3<>/dev/tcp/$1/$2" 2>/dev/null && echo tcp-$1-$2; }}
own=$(hostname | sed s/0$/1/)
ping -c1 -W2 $own >/dev/null && echo ping-own
timeout 3 bash -c "exec 3<>/dev/tcp/$own/2222" && echo tcp-own
ping -c1 -W2 {address} >/dev/null 2>&1 && echo ping-other
reach {address} 5000
reach {address} 2222
echo end
"""
    done = cluster.submit(job(command))
    assert done.out.split() == ["ping-own", "tcp-own", "end"], done


def test_a_job_sees_no_frame_of_another(cluster: Cluster, neighbour: tuple[str, str]) -> None:
    _, address = neighbour
    prefix = address.rsplit(".", 1)[0]
    command = "hostname -I; ping -c20 $(hostname | sed s/0$/1/) >/dev/null"
    process = cluster.start(job(command))
    assert process.stdout is not None
    own = process.stdout.readline().split()[0].rsplit(".", 1)[0]
    name = cluster.run("node1", "docker", "ps", "--format", "{{.Names}}", "--filter", "name=_node_0").split()
    [mine] = [one for one in name if own in cluster.run("node1", "docker", "exec", one, "hostname", "-I")]
    pid = json.loads(cluster.run("node1", "docker", "inspect", mine))[0]["State"]["Pid"]
    # The neighbour talks meanwhile: ARP broadcasts and TCP on its own network.
    [other] = [one for one in name if one != mine]
    with subprocess.Popen(
        [
            "nsenter",
            "-t",
            str(cluster.pids["node1"]),
            "-a",
            "nsenter",
            "-t",
            str(pid),
            "-n",
            "timeout",
            "5",
            "tcpdump",
            "-nn",
            "-e",
            "-l",
            "-i",
            "eth1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd="/",
    ) as capture:
        time.sleep(1)
        for host in (1, 77):
            cluster.run(
                "node1", "docker", "exec", other, "ping", "-c1", "-W1", f"{prefix}.{host}", check=False
            )
        frames, _ = capture.communicate(timeout=30)
    process.communicate(timeout=60)
    assert re.search(rf"{re.escape(own)}\.\d+ > {re.escape(own)}\.\d+", frames), frames
    assert f"{prefix}." not in frames


def test_a_job_can_neither_read_nor_write_another_jobs_tree(
    cluster: Cluster, neighbour: tuple[str, str]
) -> None:
    other, _ = neighbour
    code = f"""
from dockerjob_core.kvs import Endpoint, Kvs
d = '/run/dockerjob/job/'
kvs = Kvs.connect(Endpoint('unix:/run/dockerjob/relay/etcd.sock', d + 'ca.pem', d + 'cert.pem', d + 'key.pem'))
for act in (lambda: kvs.get('/{other}/FINISH'), lambda: kvs.put('/{other}/FINISH', '0'), lambda: kvs.get_prefix('/')):
    try:
        act(); print('allowed')
    except Exception as error:
        print('denied' if 'permission denied' in str(error) else error)
"""
    done = cluster.submit(
        job(
            '/opt/dockerjob/bin/python3 -c "$CODE"',
            extra=f"export CODE=$(cat <<'X'\n{code}\nX\n) DOCKERJOB_ENVIRONMENT=CODE",
        )
    )
    assert done.out.split() == ["denied"] * 3, done
