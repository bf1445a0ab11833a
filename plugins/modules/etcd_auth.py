#!/usr/bin/python
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: users, roles and authentication of etcd."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: etcd_auth
short_description: Users, roles and authentication of etcd
version_added: "0.1.0"
author:
  - the hpc.dockerjob authors (@hpc-dockerjob)
description:
  - Manages etcd users that are the common names of client certificates and have no password.
  - Manages roles with permissions on keys and prefixes.
  - Turns authentication on and off.
  - Users and roles that are not listed are left alone, so jobs' identities are safe from it.
  - While users or roles change, other clients' writes may fail once with C(revision of auth store is old). This
    collection's own code repeats them.
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
  roles:
    description:
      - The roles. With O(state=present) each has exactly the permissions listed.
      - The role V(root) is built in and may not be listed.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the role.
        type: str
        required: true
      permissions:
        description: What the role may do, and on which keys.
        type: list
        elements: dict
        default: []
        suboptions:
          prefix:
            description: All keys that begin with this; the empty prefix is every key.
            type: str
          key:
            description: One key, or the first of a range.
            type: str
          range_end:
            description: The key that the range from O(roles[].permissions[].key) ends before; empty for the one key.
            type: str
            default: ""
          access:
            description: Whether the role may read, write, or both.
            type: str
            choices: [read, write, readwrite]
            default: readwrite
  users:
    description:
      - The users. With O(state=present) each has exactly the roles listed.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the user, which is the common name of its certificate.
        type: str
        required: true
      roles:
        description: Names of its roles.
        type: list
        elements: str
        default: []
  enabled:
    description:
      - Whether authentication is on; not changed if not set.
      - To turn it on etcd wants a user V(root) with the role V(root).
      - It is turned on after users and roles were changed, and off before, so that the module does not lock itself out.
      - From then on only clients whose certificate names a user with the role V(root) may use this module.
    type: bool
  state:
    description:
      - With V(present) the listed users and roles exist, with V(absent) they do not.
    type: str
    choices: [present, absent]
    default: present
"""

EXAMPLES = r"""
- name: Turn authentication on, with a broker that may use the keys of jobs, which begin with a digit
  hpc.dockerjob.etcd_auth:
    roles:
      - name: dockerjob-broker
        permissions:
          - key: /1
            range_end: "/:"
          - prefix: /dockerjob/
    users:
      - name: root
        roles: [root]
      - name: dockerjob-broker
        roles: [dockerjob-broker]
    enabled: true
    target: 127.0.0.1:2379
    ca_cert: /etc/etcd/ca.pem
    client_cert: /etc/etcd/root.pem
    client_key: /etc/etcd/root.pem

- name: Let the monitoring read the index of jobs
  hpc.dockerjob.etcd_auth:
    roles:
      - name: monitoring
        permissions:
          - prefix: /dockerjob/jobs/
            access: read
    users:
      - name: monitoring
        roles: [monitoring]
    ca_cert: /etc/dockerjob/pki/ca.pem
    client_cert: /etc/etcd/root.pem
    client_key: /etc/etcd/root.pem
"""

RETURN = r"""
enabled:
  description: Whether authentication is on, in check mode whether it would be.
  type: bool
  returned: success
  sample: true
"""

from collections.abc import Mapping
from typing import Any

from ..module_utils.errors import RequestError
from ..module_utils.etcd_options import Result, run
from ..module_utils.kvs import Kvs
from ..module_utils.kvs_auth import ROOT, AuthState, Permission, Step, plan, plan_removal

PERMISSION = {
    "prefix": {"type": "str"},
    "key": {"type": "str", "no_log": False},
    "range_end": {"type": "str", "default": ""},
    "access": {"type": "str", "choices": ["read", "write", "readwrite"], "default": "readwrite"},
}
ROLE = {
    "name": {"type": "str", "required": True},
    "permissions": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": PERMISSION,
        "mutually_exclusive": [("prefix", "key")],
        "required_one_of": [("prefix", "key")],
    },
}
USER = {
    "name": {"type": "str", "required": True},
    "roles": {"type": "list", "elements": "str", "default": []},
}
ARGUMENTS = {
    "roles": {"type": "list", "elements": "dict", "default": [], "options": ROLE},
    "users": {"type": "list", "elements": "dict", "default": [], "options": USER},
    "enabled": {"type": "bool"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


def parse(options: Mapping[str, Any]) -> AuthState:
    """Return the users and roles that the options list."""
    roles = {
        role["name"]: frozenset(
            Permission(entry["key"].encode(), entry["range_end"].encode(), entry["access"])
            if entry["key"] is not None
            else Permission.on_prefix(entry["prefix"], entry["access"])
            for entry in role["permissions"]
        )
        for role in options["roles"]
    }
    if ROOT in roles:
        raise RequestError("roles: root is built in and may do everything; give it to users, don't list it")
    return AuthState({user["name"]: frozenset(user["roles"]) for user in options["users"]}, roles)


def shown(state: AuthState, enabled: bool) -> dict[str, Any]:
    """Return users and roles as the diff shows them."""
    return {
        "enabled": enabled,
        "users": {name: sorted(roles) for name, roles in sorted(state.users.items())},
        "roles": {name: sorted(map(str, given)) for name, given in sorted(state.roles.items())},
    }


def apply(kvs: Kvs, steps: list[Step], was_enabled: bool, enabled: bool) -> None:
    """Make the changes, in the order that does not lock the module out."""
    if was_enabled and not enabled:
        kvs.auth.disable()
    kvs.auth.apply(steps)
    if enabled and not was_enabled:
        kvs.auth.enable()


def ensure(options: Mapping[str, Any], kvs: Kvs, check_mode: bool) -> Result:
    """Bring users, roles and authentication into the wanted state."""
    listed = parse(options)
    have = kvs.auth.read(listed.users, listed.roles)
    was_enabled = kvs.auth.enabled()
    enabled = was_enabled if options["enabled"] is None else options["enabled"]
    present = options["state"] == "present"
    steps = plan(listed, have) if present else plan_removal(listed.users, listed.roles, have)
    if not check_mode:
        apply(kvs, steps, was_enabled, enabled)
    before, after = shown(have, was_enabled), shown(listed if present else AuthState(), enabled)
    return Result(before, after, {"enabled": enabled})


def main() -> None:
    """Run the module."""
    run(ensure, ARGUMENTS)


if __name__ == "__main__":
    main()
