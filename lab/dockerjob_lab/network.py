# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's network: a switch namespace with two bridges, and two links to each host.

The switch has a namespace of its own because a dockerd in the machine's namespace makes
bridged frames pass its FORWARD rules, where they vanish.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from .model import NETNS_ROOT, Lab, LabHost
from .system import run

BRIDGES = ("br-mgmt", "br-fab")
FABRIC_MTU = 1600
"""Above 1500, so that a tagged frame of a job's network fits."""


def namespaces(lab: Lab) -> set[str]:
    """Names of the lab's network namespaces, also half-made ones.

    A lab's name may be the beginning of another's: only the switch and names of hosts count.
    """
    if not NETNS_ROOT.is_dir():
        return set()
    rest = {entry: entry.removeprefix(lab.netns_prefix) for entry in os.listdir(NETNS_ROOT)}
    return {
        entry
        for entry, host in rest.items()
        if host != entry and (host in ("sw", "head") or (host[:4] == "node" and host[4:].isdigit()))
    }


def identity(namespace: str | Path) -> tuple[int, int] | None:
    """Device and inode of a network namespace, which name it for as long as it exists."""
    path = namespace if isinstance(namespace, Path) else NETNS_ROOT / namespace
    try:
        found = path.stat()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return found.st_dev, found.st_ino


def _links(namespace: str) -> dict[str, str]:
    """Names of the links in *namespace*, each with the bridge it is a port of (or '')."""
    links = json.loads(run(["ip", "-json", "-netns", namespace, "link", "show"]) or "[]")
    return {str(link["ifname"]): str(link.get("master", "")) for link in links if link}


def _ensure_namespace(namespace: str) -> bool:
    path = NETNS_ROOT / namespace
    # A crash between the two steps of "ip netns add" leaves a plain file without a namespace.
    if path.exists() and not _is_namespace(path):
        run(["ip", "netns", "delete", namespace])
    if path.exists():
        return False
    run(["ip", "netns", "add", namespace])
    return True


def _is_namespace(path: Path) -> bool:
    """Whether *path* is on nsfs, as this process's own network namespace is."""
    return path.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev


def _batch(namespace: str, commands: Iterable[str]) -> None:
    run(["ip", "-netns", namespace, "-batch", "-"], text="\n".join(commands) + "\n")


def ensure_switch(lab: Lab) -> bool:
    """Make the switch; True if anything was missing."""
    made = _ensure_namespace(lab.switch)
    links = _links(lab.switch)
    missing = [bridge for bridge in BRIDGES if bridge not in links]
    if missing:
        commands = ["link set lo up"]
        for bridge in missing:
            mtu = FABRIC_MTU if bridge == "br-fab" else 1500
            commands += [
                # Without an address of its own a bridge would take, and change, that of a port.
                f"link add {bridge} mtu {mtu} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                f"link set {bridge} addrgenmode none up",
            ]
        _batch(lab.switch, commands)
    return made or bool(missing)


def _port(bridge: str, host: LabHost) -> str:
    return f"{'m' if bridge == 'br-mgmt' else 'f'}-{host.name}"


def ensure_host(lab: Lab, host: LabHost, switch_links: dict[str, str]) -> bool:
    """Make the host's network namespace and its two links; True if anything was missing.

    Both ends of a link go together, so the switch's end being there tells of the other;
    it is made a port last, so a port is a finished link.
    """
    made = _ensure_namespace(host.netns)
    ports = {bridge: _port(bridge, host) for bridge in BRIDGES}
    missing = [bridge for bridge, port in ports.items() if made or switch_links.get(port) != bridge]
    if not missing:
        return False
    _batch(
        lab.switch,
        [f"link delete {ports[bridge]}" for bridge in missing if ports[bridge] in switch_links] or [""],
    )
    for bridge in missing:
        device, mtu = ("eth0", 1500) if bridge == "br-mgmt" else ("eth1", FABRIC_MTU)
        _batch(
            lab.switch,
            [f"link add {ports[bridge]} mtu {mtu} type veth peer name {device} netns {host.netns}"],
        )
        address = [f"address add {host.address}/24 dev eth0"] if device == "eth0" else []
        _batch(
            host.netns,
            # The fabric link belongs to Open vSwitch: no address, not even a link-local one.
            ["link set lo up", f"link set {device} addrgenmode none mtu {mtu} up", *address],
        )
        _batch(lab.switch, [f"link set {ports[bridge]} addrgenmode none master {bridge} up"])
    return True


def switch_links(lab: Lab) -> dict[str, str]:
    """Links in the switch with the bridge of each."""
    return _links(lab.switch)


def processes(namespace: str) -> set[int]:
    """Ids of the processes in *namespace*."""
    if not (NETNS_ROOT / namespace).exists() or not _is_namespace(NETNS_ROOT / namespace):
        return set()
    return {int(pid) for pid in run(["ip", "netns", "pids", namespace]).split()}


def delete(namespace: str) -> None:
    """Remove *namespace*; its links go with it."""
    run(["ip", "netns", "delete", namespace])
