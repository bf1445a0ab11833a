# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""etcd as a user of the hosts reaches it, and as a job does.

tests/integration/test_etcd_security.py has the single cases of identities and certificates.
"""

from __future__ import annotations

import json

import pytest
from dockerjob_lab.client import Cluster
from job_fixtures import job

from .attack import encoded, run

pytestmark = pytest.mark.lab

PROBE = """
import json, os
from dockerjob_core.errors import KvsError
from dockerjob_core.kvs import Endpoint, Kvs
files, relay = "/run/dockerjob/job", "unix:/run/dockerjob/relay/etcd.sock"
kvs = Kvs.connect(Endpoint(relay, f"{files}/ca.pem", f"{files}/cert.pem", f"{files}/key.pem"))
own = os.environ["DOCKERJOB_JOB"]
came = {}
for name, action in {
    "own": lambda: kvs.get_prefix(f"/{own}/"),
    "everything": lambda: kvs.get_prefix("/"),
    "the index of jobs": lambda: kvs.get_prefix("/dockerjob/"),
    "another job": lambda: kvs.get("/1/FINISH"),
    "a job with a longer number": lambda: kvs.get(f"/{own}0/FINISH"),
    "an element of an array": lambda: kvs.get(f"/{own}_1/FINISH"),
    "write another job": lambda: kvs.put("/1/FINISH", "0"),
    "write a network": lambda: kvs.put("/dockerjob/networks/vlan/1", "0"),
    "delete all jobs": lambda: kvs.delete_prefix("/dockerjob/"),
    "list users": kvs.auth.users,
}.items():
    try:
        action()
        came[name] = "done"
    except KvsError as error:
        came[name] = "denied" if "permission denied" in str(error) else str(error)
print(json.dumps(came))
"""


@pytest.mark.usefixtures("nothing_left")
def test_a_job_sees_nothing_of_etcd_but_its_own(cluster: Cluster) -> None:
    run_probe = f"echo {encoded(PROBE)} | base64 -d | /opt/dockerjob/bin/python -"
    done = cluster.submit(job(run_probe, slots=1, ptile=1), hosts="node1")
    assert done.status == 0, done
    came = json.loads(done.out)
    assert came.pop("own") == "done"
    assert set(came.values()) == {"denied"}, came
    assert len(came) == 9


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(
    "endpoint",
    ["unix:///run/dockerjob/relay/etcd.sock", "https://10.77.0.1:2379", "http://10.77.0.1:2379"],
)
def test_without_a_certificate_there_is_no_etcd(cluster: Cluster, endpoint: str) -> None:
    options = (f"--endpoints={endpoint}", "--dial-timeout=2s", "--command-timeout=3s")
    client = ("env", "ETCDCTL_API=3", "etcdctl", *options, "--insecure-skip-tls-verify")
    for action in (("get", "/", "--prefix"), ("put", "/1/FINISH", "0")):
        done = run(cluster, *client, *action)
        assert (done.status, done.out) == (1, ""), (action, done)
        assert "deadline exceeded" in done.err or "certificate" in done.err, done


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("value", ["done", "256", "9" * 5000])
def test_an_exit_status_that_is_none_ends_the_job_in_words(cluster: Cluster, value: str) -> None:
    """FINISH is the job's own to write, so also its users'."""
    code = PROBE.partition("came = {}")[0] + f"kvs.put(f'/{{own}}/FINISH', {value!r})\n"
    command = f"echo {encoded(code)} | base64 -d | /opt/dockerjob/bin/python -; sleep 60"
    done = cluster.submit(job(command, slots=1, ptile=1), hosts="node1")
    assert done.status == 204, done
    assert "which is no exit status" in done.err
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("nothing_left")
def test_the_brokers_everyday_identity_can_not_make_users(cluster: Cluster) -> None:
    code = """
from dockerjob.config import load_config
from dockerjob_core.kvs import Endpoint, Kvs
etcd = load_config().etcd
Kvs.connect(Endpoint("unix:" + etcd.socket, etcd.ca, etcd.cert, etcd.key, etcd.server_name)).auth.users()
"""
    done = run(cluster, "/share/dockerjob/current/bin/python", "-c", code, user="dockerjob")
    assert done.status != 0
    assert "permission denied" in done.err
