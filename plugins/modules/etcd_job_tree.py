#!/usr/bin/python
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: a job's tree in etcd."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: etcd_job_tree
short_description: A job's tree in etcd
version_added: "0.1.0"
author:
  - the hpc.dockerjob authors (@hpc-dockerjob)
description:
  - Makes the keys of a job under C(/<job>/), with C(FINISH) set to C(FALSE), under a lease, so that they go away
    by themselves when nobody ends the job.
  - Makes the job's record in the index of jobs, which is not under the lease, so that a crashed job can be cleaned up.
  - Makes the etcd user and role C(job-<job>), which may use the job's own keys and nothing else.
  - With O(state=absent) it removes all of this.
  - The job's network is not part of it, see M(hpc.dockerjob.etcd_network).
extends_documentation_fragment:
  - hpc.dockerjob.etcd
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - A tree whose job runs and that has the same O(node_count) and O(record) is left alone. Any other is a leftover
        of an earlier run of the job and is made anew.
options:
  job_id:
    description:
      - The job's id, C(number) or C(number_index) for an element of an array.
    type: str
    required: true
  node_count:
    description:
      - Number of the job's nodes.
      - Required if O(state=present).
    type: int
  ttl:
    description:
      - Seconds until the job's keys go away by themselves, that is its wall-clock limit and some grace.
      - Not compared with a tree that is there.
      - Required if O(state=present).
    type: int
  record:
    description:
      - What else the record in the index of jobs shall hold, such as the job's hosts.
    type: dict
    default: {}
  auth_cert:
    description:
      - File with the client certificate that the job's user and role are made and removed with.
      - Its user needs the role V(root); that of O(client_cert) then needs no more than the keys of jobs.
      - Default is O(client_cert).
    type: path
  auth_key:
    description:
      - File with the private key of O(auth_cert).
    type: path
  state:
    description:
      - With V(present) the job's tree, record and identity are there, with V(absent) they are not.
    type: str
    choices: [present, absent]
    default: present
"""

EXAMPLES = r"""
- name: Make the job's tree
  hpc.dockerjob.etcd_job_tree:
    job_id: "748"
    node_count: 2
    ttl: 360
    record:
      hosts: [node1, node2]
    ca_cert: /etc/dockerjob/pki/ca.pem
    client_cert: /etc/dockerjob/pki/broker.pem
    client_key: /etc/dockerjob/pki/broker.key
    auth_cert: /etc/dockerjob/pki/auth.pem
    auth_key: /etc/dockerjob/pki/auth.key
  register: tree

- name: Remove the job's tree
  hpc.dockerjob.etcd_job_tree:
    job_id: "748"
    state: absent
    ca_cert: /etc/dockerjob/pki/ca.pem
    client_cert: /etc/dockerjob/pki/broker.pem
    client_key: /etc/dockerjob/pki/broker.key
    auth_cert: /etc/dockerjob/pki/auth.pem
    auth_key: /etc/dockerjob/pki/auth.key
"""

RETURN = r"""
job_id:
  description: The job.
  type: str
  returned: success
  sample: "748"
lease_id:
  description: Lease of the job's keys.
  type: int
  returned: O(state=present), except when check mode stands for a tree that would be made
  sample: 7587862094525664520
user:
  description: The job's etcd user, which its client certificate has to name.
  type: str
  returned: success
  sample: job-748
"""

from collections.abc import Mapping
from typing import Any, Literal

from ..module_utils import jobtree, names
from ..module_utils.etcd_options import IDENTITY, Result, run
from ..module_utils.jobtree import JobTree
from ..module_utils.kvs import Kvs

ARGUMENTS = {
    **IDENTITY,
    "job_id": {"type": "str", "required": True},
    "node_count": {"type": "int"},
    "ttl": {"type": "int"},
    "record": {"type": "dict", "default": {}},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


def plan(want: JobTree | None, have: JobTree | None, leftovers: bool) -> Literal["create", "remove"] | None:
    """Say what makes *want* of *have*, where *leftovers* are keys or an identity without a record."""
    if want is None:
        return "remove" if have or leftovers else None
    same = have and have.running and (have.node_count, have.record) == (want.node_count, want.record)
    return None if same else "create"


def shown(tree: JobTree | None, leftovers: bool = False) -> dict[str, Any]:
    """Return the tree as the diff shows it."""
    if tree is None:
        return {"leftovers": True} if leftovers else {}
    finish = tree.finish.decode(errors="backslashreplace") if tree.finish is not None else None
    return {"FINISH": finish, "node_count": tree.node_count, "record": dict(tree.record)}


def find_leftovers(kvs: Kvs, job_id: str) -> bool:
    """Say whether there are keys or an identity of the job, as a half-made tree leaves them."""
    return bool(kvs.get_prefix(names.job_prefix(job_id)).items) or kvs.identities.exists(job_id)


def ensure(options: Mapping[str, Any], kvs: Kvs, check_mode: bool) -> Result:
    """Bring the job's tree into the wanted state."""
    job_id = names.check_job_id(options["job_id"])
    have = jobtree.read_job_tree(kvs, job_id)
    leftovers = have is None and find_leftovers(kvs, job_id)
    want = None
    if options["state"] == "present":
        want = JobTree(job_id, 0, options["node_count"], options["record"], jobtree.RUNNING)
    step = plan(want, have, leftovers)
    lease = have.lease_id if have and not step else None
    if step == "create" and not check_mode:
        lease, _ = jobtree.create_job_tree(
            kvs, job_id, options["node_count"], options["ttl"], options["record"]
        )
    elif step == "remove" and not check_mode:
        jobtree.remove_job_tree(kvs, job_id)
    values = {"job_id": job_id, "user": names.etcd_user(job_id)} | ({"lease_id": lease} if lease else {})
    return Result(shown(have, leftovers), shown(want), values)


def main() -> None:
    """Run the module."""
    run(
        ensure,
        ARGUMENTS,
        required_if=[("state", "present", ("node_count", "ttl"))],
        required_together=[("auth_cert", "auth_key")],
    )


if __name__ == "__main__":
    main()
