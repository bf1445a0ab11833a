#!/usr/bin/python
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: a container's port in an Open vSwitch bridge."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ovs_docker_port
short_description: A container's port in an Open vSwitch bridge
version_added: "0.1.0"
author:
  - the hpc.dockerjob authors (@hpc-dockerjob)
description:
  - Connects a running container to a bridge, as C(ovs-docker add-port) and C(set-vlan) do, or disconnects it.
  - Every step is checked, and if one fails the port is taken down again.
  - VLAN and marks are set in the transaction that makes the port, so it is never untagged.
  - The container can send ARP and IPv4 from its own hardware address and its own address only.
    Forged senders, IPv6, tagged frames and all other protocols are dropped by flows of the bridge, and without flows
    nothing passes.
    No option loosens this.
  - A port or flows that a container left behind are found by their marks and removed.
  - With the userspace datapath the container's transmit checksum offload is switched off, without which TCP hangs.
attributes:
  check_mode:
    description: Says what would change without changing it.
    support: full
  diff_mode:
    description: Shows the port before and after.
    support: full
  idempotent:
    description: What is as wanted is left alone.
    support: full
requirements:
  - Docker SDK for Python (C(docker) 5.0.3 or later), with O(state=present)
  - C(ovs-vsctl), C(ovs-ofctl), C(ip), C(nsenter) and C(ethtool)
options:
  state:
    description: Whether the container is connected.
    type: str
    choices: [present, absent]
    default: present
  container:
    description:
      - Name or id of the container.
      - With O(state=absent) it need not exist any more.
    type: str
    required: true
  interface:
    description: Name of the interface in the container.
    type: str
    default: eth1
  bridge:
    description:
      - The bridge, required if O(state=present).
      - It must be one that M(hpc.dockerjob.ovs_bridge) has made or seen to.
    type: str
  address:
    description:
      - IPv4 address with prefix length; the interface's only one.
      - A new port without it lets nothing pass.
    type: str
  gateway:
    description: Default gateway of the container.
    type: str
  mac:
    description: Hardware address; made from the port's name if not set.
    type: str
  mtu:
    description: Largest packet, set on both ends.
    type: int
  vlan:
    description: VLAN of the port; without it the port has the bridge's untagged frames.
    type: int
  external_ids:
    description: Further marks of the port.
    type: dict
    default: {}
  docker_host:
    description: Address of the Docker daemon.
    type: str
    default: unix:///var/run/docker.sock
"""

EXAMPLES = r"""
- name: Connect a container to VLAN 100
  hpc.dockerjob.ovs_docker_port:
    container: web
    bridge: br-job
    address: 10.128.0.1/24
    vlan: 100

- name: Disconnect it
  hpc.dockerjob.ovs_docker_port:
    container: web
    state: absent
"""

RETURN = r"""
port:
  description: Name of the port and of the host's end of the pair.
  type: str
  returned: O(state=present)
  sample: dj1f0c2a93b7de
removed:
  description: Names of the ports removed, or in check mode to be removed.
  type: list
  elements: str
  returned: O(state=absent)
steps:
  description: What the module did, or in check mode would do.
  type: list
  elements: str
  returned: success
  sample: [create link, attach port, set flows, configure interface]
"""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ..module_utils import flows, names, ovs, port
from ..module_utils.container import DOCKER_HOST, Engine, Found
from ..module_utils.errors import HostError

ARGUMENTS = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "container": {"type": "str", "required": True},
    "interface": {"type": "str", "default": "eth1"},
    "bridge": {"type": "str"},
    "address": {"type": "str"},
    "gateway": {"type": "str"},
    "mac": {"type": "str"},
    "mtu": {"type": "int"},
    "vlan": {"type": "int"},
    "external_ids": {"type": "dict", "default": {}},
    "docker_host": {"type": "str", "default": DOCKER_HOST},
}


def running(options: dict[str, Any]) -> Found:
    """Return the container, which must run."""
    with Engine.connect(options["docker_host"]) as engine:
        found = engine.find(options["container"])
    if found is None or not found.running:
        state = "does not exist" if found is None else "does not run"
        raise HostError(f"container {options['container']} {state}, so it cannot be connected")
    return found


def describe(name: str, have: port.Have) -> dict[str, Any]:
    """Show the port as plain data; nothing if there is none."""
    found = have.state.ports.get(name)
    if found is None:
        return {}
    about = sorted(str(flow) for flow in have.flows or () if flow.port == name)
    shown: dict[str, Any] = {"bridge": found.bridge, "vlan": found.tag, "flows": about}
    if have.inner:
        addresses = " ".join(have.inner.addresses)
        shown.update(address=addresses or None, mac=have.inner.mac, mtu=have.inner.mtu, up=have.inner.up)
    return shown


def present(module: AnsibleModule, state: ovs.OvsState) -> dict[str, Any]:
    """Connect the container."""
    options = module.params
    found = running(options)
    known = port.of_container(state, found.id, options["interface"])
    want = port.PortSpec(
        container_id=found.id,
        pid=found.pid,
        link=known[0] if known else port.link_name(found.name, options["interface"]),
        external_ids={key: str(value) for key, value in options["external_ids"].items()},
        **{key: options[key] for key in ("bridge", "interface", "address", "gateway", "mac", "mtu", "vlan")},
    )
    have = port.read_have(want, state)
    before = describe(want.link, have)
    steps = port.plan_attach(want, have) if module.check_mode else port.attach(want, have)
    given = {
        key: options[key] for key in ("bridge", "vlan", "address", "mac", "mtu") if options[key] is not None
    }
    guarded = sorted(map(str, want.guard(have.inner.addresses if have.inner else ()).flows(want.link)))
    after = {**before, **given, "up": True, "flows": guarded} if steps else before
    return {
        "changed": bool(steps),
        "port": want.link,
        "steps": [step.name for step in steps],
        "diff": {"before": before, "after": after},
    }


def absent(module: AnsibleModule, state: ovs.OvsState) -> dict[str, Any]:
    """Disconnect the container, or remove what it left behind."""
    container, interface = module.params["container"], module.params["interface"]
    ports = port.of_container(state, container, interface)
    named = port.link_name(container, interface)
    # A link or flows without a port are what is left when somebody else removed the port.
    links = {*ports, *filter(port.link_exists, (named,))}
    left = port.look_for_flows(state, state.bridges, set(map(names.flow_cookie, (named, *ports))))
    marks = port.marks_of(left)
    steps = port.plan_detach(ports, sorted(filter(port.link_exists, links)), marks)
    if not module.check_mode:
        port.detach(ports, sorted(links), marks)
    return {
        "changed": bool(steps),
        "removed": sorted(links),
        "steps": [step.name for step in steps],
        "diff": {"before": held(state, ports, left), "after": {}},
    }


def held(
    state: ovs.OvsState, ports: Sequence[str], left: Mapping[str, frozenset[flows.Flow]]
) -> dict[str, Any]:
    """Show what there is to remove as plain data."""
    shown: dict[str, Any] = {
        name: {"bridge": state.ports[name].bridge, "vlan": state.ports[name].tag} for name in ports
    }
    if left:
        shown["flows"] = {bridge: sorted(map(str, own)) for bridge, own in left.items()}
    return shown


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        required_if=[("state", "present", ("bridge",))],
        supports_check_mode=True,
    )
    action = present if module.params["state"] == "present" else absent
    try:
        result = action(module, ovs.read_state())
    except ImportError:
        module.fail_json(msg=missing_required_lib("docker"), exception=traceback.format_exc())
    except HostError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
