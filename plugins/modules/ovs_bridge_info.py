#!/usr/bin/python
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: the Open vSwitch bridges of a host and their ports."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ovs_bridge_info
short_description: The Open vSwitch bridges of a host and their ports
version_added: "0.1.0"
author:
  - the hpc.dockerjob authors (@hpc-dockerjob)
description:
  - Reads the bridges and ports with their VLANs and marks.
attributes:
  check_mode:
    description: Reads only.
    support: full
  diff_mode:
    description: There is nothing to show, as nothing changes.
    support: N/A
  idempotent:
    description: Reads only.
    support: full
requirements:
  - C(ovs-vsctl)
options:
  name:
    description: Only this bridge; all if not set.
    type: str
"""

EXAMPLES = r"""
- name: Read the job networks' ports
  hpc.dockerjob.ovs_bridge_info:
    name: br-job
  register: job_bridge
"""

RETURN = r"""
bridges:
  description: The bridges, by name.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Name of the bridge.
      type: str
      sample: br-job
    datapath_type:
      description: Its datapath.
      type: str
      sample: netdev
    fail_mode:
      description: What it does without a controller.
      type: str
    external_ids:
      description: Its marks.
      type: dict
    ports:
      description: Its ports, by name.
      type: list
      elements: dict
      contains:
        name:
          description: Name of the port.
          type: str
        tag:
          description: Its VLAN, V(none) for a trunk.
          type: int
        external_ids:
          description: Its marks.
          type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import ovs
from ..module_utils.errors import HostError


def describe(state: ovs.OvsState, only: str | None) -> list[dict[str, Any]]:
    """Show the bridges as plain data."""
    return [
        {
            "name": bridge.name,
            "datapath_type": bridge.datapath_type,
            "fail_mode": bridge.fail_mode,
            "external_ids": dict(bridge.external_ids),
            "ports": [
                {"name": port.name, "tag": port.tag, "external_ids": dict(port.external_ids)}
                for port in sorted(state.ports.values(), key=lambda port: port.name)
                if port.bridge == bridge.name
            ],
        }
        for bridge in sorted(state.bridges.values(), key=lambda bridge: bridge.name)
        if only in (None, bridge.name)
    ]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={"name": {"type": "str"}}, supports_check_mode=True)
    try:
        state = ovs.read_state()
    except HostError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, bridges=describe(state, module.params["name"]))


if __name__ == "__main__":
    main()
