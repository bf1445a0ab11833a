#!/usr/bin/python
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: an Open vSwitch bridge with its uplink."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ovs_bridge
short_description: An Open vSwitch bridge with its uplink
version_added: "0.1.0"
author:
  - the hpc.dockerjob authors (@hpc-dockerjob)
description:
  - Makes or removes a bridge, its uplink and its marks in one database transaction.
  - The bridge passes only what flows allow. Those of ports that have no container behind them, such as the uplink,
    allow all. Those of a container's port are M(hpc.dockerjob.ovs_docker_port)'s; what has been lost of them is put
    back.
  - The host's own port in the bridge, which has the bridge's name, is taken out of the VLANs; it keeps untagged frames.
  - Unlike M(openvswitch.openvswitch.openvswitch_bridge) it chooses the datapath by what the kernel has, and makes the
    uplink fit for it.
notes:
  - Open vSwitch keeps the bridge over a reboot.
    The state of the uplink's link and its offloads is the kernel's and is lost, so run this again, or set them in the
    host's network configuration.
  - Open vSwitch keeps flows in the memory of C(ovs-vswitchd). If that dies, nothing passes the bridge until this is run
    again; C(ovs-ctl restart) saves them and puts them back.
  - A port that the site adds to the bridge passes nothing before this is run again, or the host's next job starts.
attributes:
  check_mode:
    description: Says what would change without changing it.
    support: full
  diff_mode:
    description: Shows the bridge before and after.
    support: full
  idempotent:
    description: What is as wanted is left alone.
    support: full
requirements:
  - C(ovs-vsctl), C(ovs-ofctl), and with O(uplink) C(ip) and C(ethtool)
options:
  state:
    description: Whether the bridge is there.
    type: str
    choices: [present, absent]
    default: present
  name:
    description: Name of the bridge.
    type: str
    required: true
  datapath_type:
    description:
      - V(system) is the kernel's datapath, V(netdev) the one in userspace.
      - With V(auto) a new bridge gets V(system) if the kernel has it, else V(netdev); a bridge that exists keeps what
        it has.
    type: str
    choices: [auto, system, netdev]
    default: auto
  uplink:
    description:
      - Interface of the host that leads to the other hosts; it is brought up.
      - With the userspace datapath its receive offloads that merge frames are switched off.
      - A port of another bridge is not taken from it, the module fails.
    type: str
  external_ids:
    description: Marks of the bridge; others it has are kept.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Make the bridge of the job networks
  hpc.dockerjob.ovs_bridge:
    name: br-job
    uplink: eth1
    external_ids:
      owner: dockerjob

- name: Remove it
  hpc.dockerjob.ovs_bridge:
    name: br-job
    state: absent
"""

RETURN = r"""
bridge:
  description: The bridge as it is, or in check mode would be.
  type: dict
  returned: O(state=present)
  contains:
    name:
      description: Its name.
      type: str
      sample: br-job
    datapath_type:
      description: Its datapath.
      type: str
      sample: netdev
    fail_mode:
      description: What it does without a controller, V(secure).
      type: str
    flows:
      description: Our flows in it.
      type: list
      elements: str
    external_ids:
      description: Its marks.
      type: dict
    uplink:
      description: Its uplink.
      type: str
      sample: eth1
    host_vlan:
      description: VLAN of the host's own port, V(0) for untagged frames.
      type: int
commands:
  description: The commands that changed, or in check mode would change, something.
  type: list
  elements: list
  returned: always
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import flows, ovs
from ..module_utils.command import run
from ..module_utils.errors import HostError

ARGUMENTS = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "name": {"type": "str", "required": True},
    "datapath_type": {"type": "str", "choices": ["auto", "system", "netdev"], "default": "auto"},
    "uplink": {"type": "str"},
    "external_ids": {"type": "dict", "default": {}},
}


def wanted(options: dict[str, Any], have: ovs.OvsState) -> ovs.BridgeSpec:
    """Build the wanted bridge from the module's options."""
    datapath = options["datapath_type"]
    if datapath == "auto":
        datapath = None
        if options["name"] not in have.bridges:
            datapath = "system" if ovs.kernel_datapath() else "netdev"
    return ovs.BridgeSpec(
        name=options["name"],
        datapath_type=datapath,
        uplink=options["uplink"],
        external_ids={key: str(value) for key, value in options["external_ids"].items()},
    )


def describe(
    name: str, state: ovs.OvsState, uplink: str | None, there: frozenset[flows.Flow]
) -> dict[str, Any]:
    """Show the bridge as plain data; nothing if there is none."""
    bridge = state.bridges.get(name)
    if bridge is None:
        return {}
    port = state.ports.get(uplink) if uplink else None
    return {
        "name": name,
        "datapath_type": bridge.datapath_type,
        "fail_mode": bridge.fail_mode,
        "external_ids": dict(bridge.external_ids),
        "uplink": uplink if port and port.bridge == name else None,
        "host_vlan": state.ports[name].tag,
        "flows": sorted(map(str, there)),
    }


def expected(
    want: ovs.BridgeSpec, before: dict[str, Any], wanted_flows: frozenset[flows.Flow]
) -> dict[str, Any]:
    """Show the bridge as it is to be."""
    return {
        "name": want.name,
        "datapath_type": want.datapath_type or before.get("datapath_type"),
        "fail_mode": ovs.SECURE,
        "external_ids": {**before.get("external_ids", {}), **want.external_ids},
        "uplink": want.uplink,
        "host_vlan": before.get("host_vlan") or 0,
        "flows": sorted(map(str, wanted_flows)),
    }


def flows_wanted(want: ovs.BridgeSpec, have: ovs.OvsState) -> frozenset[flows.Flow]:
    """Return the flows of the bridge when it is as wanted."""
    added = {flows.LOCAL, want.uplink} if want.uplink else {flows.LOCAL}
    return flows.of_bridge(have, want.name) | {flows.trusted(port) for port in added}


def present(module: AnsibleModule, have: ovs.OvsState) -> dict[str, Any]:
    """Make the bridge as wanted."""
    want = wanted(module.params, have)
    known = want.name in have.bridges
    there = flows.read(want.name) if known else frozenset()
    goal = flows_wanted(want, have)
    before = describe(want.name, have, want.uplink, there)
    transaction = ovs.plan_bridge(want, have)
    # A change of the fail mode removes all flows.
    kept = there if known and have.bridges[want.name].fail_mode == ovs.SECURE else frozenset()
    lines = flows.plan_bridge(goal, kept)
    after = expected(want, before, goal.union(flow for flow in kept if not flow.forlorn))
    link_commands: tuple[tuple[str, ...], ...] = ()
    if want.uplink:
        link_commands = ovs.plan_uplink(ovs.read_uplink(want.uplink), after["datapath_type"])
    if not module.check_mode:
        ovs.apply(transaction)
        for command in link_commands:
            run(command)
        if lines:
            flows.apply(want.name, lines)
    commands = [*(("ovs-vsctl", *command) for command in transaction), *link_commands]
    commands += (("ovs-ofctl", "add-flows", want.name, line) for line in lines)
    shown = {**before, "link": [" ".join(command) for command in link_commands]} if link_commands else before
    return {
        "changed": bool(commands),
        "bridge": after,
        "commands": commands,
        "diff": {"before": shown, "after": {**after, "link": []} if link_commands else after},
    }


def absent(module: AnsibleModule, have: ovs.OvsState) -> dict[str, Any]:
    """Remove the bridge."""
    name = module.params["name"]
    there = flows.read(name) if name in have.bridges else frozenset()
    transaction = ovs.plan_bridge_absent(name, have)
    if not module.check_mode:
        ovs.apply(transaction)
    return {
        "changed": bool(transaction),
        "commands": [("ovs-vsctl", *command) for command in transaction],
        "diff": {"before": describe(name, have, module.params["uplink"], there), "after": {}},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    action = present if module.params["state"] == "present" else absent
    try:
        result = action(module, ovs.read_state())
    except HostError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
