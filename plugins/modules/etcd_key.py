#!/usr/bin/python
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: one key in etcd."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: etcd_key
short_description: A key in etcd
version_added: "0.1.0"
author:
  - the hpc.dockerjob authors (@hpc-dockerjob)
description:
  - Sets or deletes one key of etcd's v3 key space.
  - To read keys or to wait for one, use M(hpc.dockerjob.etcd_key_info).
extends_documentation_fragment:
  - hpc.dockerjob.etcd
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  key:
    description:
      - The key, such as V(/748/FINISH).
    type: str
    required: true
  value:
    description:
      - The value, required if O(state=present).
      - Quote it. YAML makes a boolean of FALSE, and Ansible would store that as C(False).
      - What a user wrote (a job's command) must come as C(!unsafe) or from a variable that is not a template,
        as Ansible evaluates braces in it otherwise.
    type: str
  lease:
    description:
      - Id of the lease that the key shall go with; V(0) is none.
    type: int
    default: 0
  state:
    description:
      - With V(present) the key has O(value) and O(lease), with V(absent) there is no such key.
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: hpc.dockerjob.etcd_key_info
"""

EXAMPLES = r"""
- name: Say that the job runs
  hpc.dockerjob.etcd_key:
    key: /748/FINISH
    value: "FALSE"
    lease: "{{ tree.lease_id }}"
    ca_cert: /etc/dockerjob/pki/ca.pem
    client_cert: /etc/dockerjob/pki/broker.pem
    client_key: /etc/dockerjob/pki/broker.key

- name: Remove a key
  hpc.dockerjob.etcd_key:
    key: /dockerjob/maintenance
    state: absent
    ca_cert: /etc/dockerjob/pki/ca.pem
    client_cert: /etc/dockerjob/pki/broker.pem
    client_key: /etc/dockerjob/pki/broker.key
"""

RETURN = r"""
key:
  description: The key.
  type: str
  returned: success
  sample: /748/FINISH
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..module_utils.etcd_options import Result, run
from ..module_utils.kvs import Kvs

ARGUMENTS = {
    "key": {"type": "str", "required": True, "no_log": False},
    "value": {"type": "str"},
    "lease": {"type": "int", "default": 0},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


@dataclass(frozen=True)
class Content:
    """What a key holds."""

    value: bytes
    lease: int

    def shown(self) -> dict[str, Any]:
        """Return it as the diff shows it."""
        return {"value": self.value.decode(errors="backslashreplace"), "lease": self.lease}


def plan(want: Content | None, have: Content | None) -> Literal["put", "delete"] | None:
    """Say what makes *want* of *have*; None stands for no such key, and for nothing to do."""
    if want == have:
        return None
    return "put" if want else "delete"


def ensure(options: Mapping[str, Any], kvs: Kvs, check_mode: bool) -> Result:
    """Bring the key into the wanted state."""
    key = options["key"]
    found = kvs.get(key)
    have = Content(found.value, found.lease) if found else None
    want = Content(options["value"].encode(), options["lease"]) if options["state"] == "present" else None
    step = None if check_mode else plan(want, have)
    if step == "put" and want:
        kvs.put(key, want.value, want.lease)
    elif step == "delete":
        kvs.delete(key)
    before, after = ({key: content.shown()} if content else {} for content in (have, want))
    return Result(before, after, {"key": key})


def main() -> None:
    """Run the module."""
    run(ensure, ARGUMENTS, required_if=[("state", "present", ("value",))])


if __name__ == "__main__":
    main()
