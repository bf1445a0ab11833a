#!/usr/bin/python
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: the network reserved for a job."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: etcd_network
short_description: The network reserved for a job
version_added: "0.1.0"
author:
  - the hpc.dockerjob authors (@hpc-dockerjob)
description:
  - Reserves a free subnet and a free VLAN for a job, in one transaction of etcd, so that no two jobs share one.
  - The reservation does not end with the job. Release it when no host has a port of the job any more.
extends_documentation_fragment:
  - hpc.dockerjob.etcd
attributes:
  check_mode:
    support: full
    details:
      - Which network would be reserved is not said, as another job may take it first.
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - A job that has a network keeps it, also if the pool was changed since.
options:
  job_id:
    description:
      - The job's id, C(number) or C(number_index) for an element of an array.
    type: str
    required: true
  supernet:
    description:
      - The network that is cut into the jobs' subnets.
      - Required if O(state=present).
    type: str
  prefix_length:
    description:
      - Prefix length of one job's subnet. A V(24) has addresses for 254 nodes.
    type: int
    default: 24
  vlans:
    description:
      - VLAN tags for jobs, such as V(100-3999,4010).
      - Required if O(state=present).
    type: str
  state:
    description:
      - With V(present) the job has a network, with V(absent) it has none.
    type: str
    choices: [present, absent]
    default: present
requirements:
  - netaddr (Debian package C(python3-netaddr)) on the host the module runs on
"""

EXAMPLES = r"""
- name: Reserve the job's network
  hpc.dockerjob.etcd_network:
    job_id: "748"
    supernet: 10.128.0.0/9
    vlans: 100-3999
    ca_cert: /etc/dockerjob/pki/ca.pem
    client_cert: /etc/dockerjob/pki/broker.pem
    client_key: /etc/dockerjob/pki/broker.key
  register: reserved

- name: Release the job's network
  hpc.dockerjob.etcd_network:
    job_id: "748"
    state: absent
    ca_cert: /etc/dockerjob/pki/ca.pem
    client_cert: /etc/dockerjob/pki/broker.pem
    client_key: /etc/dockerjob/pki/broker.key
"""

RETURN = r"""
job_id:
  description: The job.
  type: str
  returned: success
  sample: "748"
network:
  description: The job's network, or with O(state=absent) the one it had.
  type: dict
  returned: if there is or was one
  contains:
    subnet:
      description: The subnet; node 0 has its first address.
      type: str
      sample: 10.128.7.0/24
    prefix_length:
      description: Prefix length of the subnet.
      type: int
      sample: 24
    vlan:
      description: The VLAN.
      type: int
      sample: 107
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from ..module_utils import names
from ..module_utils.etcd_options import Result, run
from ..module_utils.kvs import Kvs

ARGUMENTS = {
    "job_id": {"type": "str", "required": True},
    "supernet": {"type": "str"},
    "prefix_length": {"type": "int", "default": 24},
    "vlans": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


def plan(state: str, reserved: bool) -> Literal["reserve", "release"] | None:
    """Say what brings a job with or without a reservation into *state*."""
    if (state == "present") == reserved:
        return None
    return "release" if reserved else "reserve"


def ensure(options: Mapping[str, Any], kvs: Kvs, check_mode: bool) -> Result:
    """Bring the job's reservation into the wanted state."""
    from ..module_utils import ipam  # wants netaddr, whose lack run() reports

    job_id = names.check_job_id(options["job_id"])
    have = ipam.find(kvs, job_id)
    before = asdict(have) if have else {}
    step = plan(options["state"], have is not None)
    if step == "reserve":
        pool = ipam.NetworkPool(options["supernet"], options["prefix_length"], options["vlans"])
        have = None if check_mode else ipam.reserve(kvs, pool, job_id)
        after = (
            asdict(have) if have else {"subnet": f"one of {pool.supernet}", "vlan": f"one of {pool.vlans}"}
        )
    elif step == "release":
        after = {}
        if not check_mode:
            ipam.release(kvs, job_id)
    else:
        after = before
    network = {"network": {**asdict(have), "prefix_length": have.prefix_length}} if have else {}
    return Result(before, after, {"job_id": job_id, **network})


def main() -> None:
    """Run the module."""
    run(ensure, ARGUMENTS, required_if=[("state", "present", ("supernet", "vlans"))])


if __name__ == "__main__":
    main()
