# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open vSwitch through ``ovs-vsctl``: read its database, plan a change, apply it as one transaction.

``ovs-vsctl`` runs all commands of one call in a single database transaction
(ovs-vsctl(8)), so nothing is ever seen half done.  One call costs about 10 ms, a tenth
of importing the Python IDL.
"""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from . import names
from .command import CommandError, Completed, run
from .errors import HostError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DatapathType = Literal["system", "netdev"]

SECURE = "secure"
"""Fail mode of a bridge that drops what no flow of it allows, also when it has lost its flows."""

TIMEOUT = 30
"""Seconds ``ovs-vsctl`` waits for the database, and for ovs-vswitchd to apply a change."""


@dataclass(frozen=True)
class OvsPort:
    """A port as the database has it."""

    name: str
    bridge: str
    tag: int | None = None
    external_ids: Mapping[str, str] = field(default_factory=dict)
    vlan_mode: str | None = None
    interfaces: tuple[str, ...] = ()
    """Its interfaces that the bridge could open: one, or several of a bond."""
    interface_ids: Mapping[str, str] = field(default_factory=dict)
    """``external_ids`` of its interfaces, where ovs-docker has its marks."""

    @property
    def containers(self) -> bool:
        """Tell whether a container is behind it, whoever connected that."""
        marks = {names.OVS_JOB, names.OVS_CONTAINER}
        return not marks.isdisjoint({*self.external_ids, *self.interface_ids})


@dataclass(frozen=True)
class OvsBridge:
    """A bridge as the database has it."""

    name: str
    datapath_type: str
    fail_mode: str | None = None
    external_ids: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OvsState:
    """All bridges and ports of a host, read in one call."""

    bridges: Mapping[str, OvsBridge]
    ports: Mapping[str, OvsPort]

    def bridge(self, name: str) -> OvsBridge:
        """Return bridge *name*, or say that it is missing."""
        try:
            return self.bridges[name]
        except KeyError:
            raise HostError(f"Open vSwitch has no bridge {name} on this host; run cluster_setup") from None

    def guarded_bridge(self, name: str) -> OvsBridge:
        """Return bridge *name*, which must be one that a container's port can be guarded in."""
        bridge = self.bridge(name)
        if bridge.fail_mode != SECURE:
            raise HostError(
                f"bridge {name} would pass any frame if it lost its flows (fail_mode is not {SECURE}); "
                f"run cluster_setup"
            )
        return bridge

    def find(self, marks: Mapping[str, str]) -> tuple[OvsPort, ...]:
        """Return the ports whose ``external_ids`` hold all of *marks*."""
        return tuple(
            port
            for port in self.ports.values()
            if all(port.external_ids.get(key) == value for key, value in marks.items())
        )


@dataclass(frozen=True)
class BridgeSpec:
    """The wanted bridge; ``None`` leaves a property as it is."""

    name: str
    datapath_type: DatapathType | None = None
    uplink: str | None = None
    external_ids: Mapping[str, str] = field(default_factory=dict)


def decode(value: Any) -> Any:
    """Turn a value in the JSON notation of RFC 7047 into a plain one; an empty set is ``None``."""
    match value:
        case ["set", [*members]]:
            return [decode(member) for member in members] if members else None
        case ["map", [*pairs]]:
            return dict(pairs)
        case ["uuid", identifier]:
            return identifier
        case _:
            return value


def tables(text: str) -> list[list[dict[str, Any]]]:
    """Parse ``--format=json`` output: one table a line, each a list of rows."""
    parsed = []
    for line in filter(None, text.splitlines()):
        table = json.loads(line)
        parsed.append([dict(zip(table["headings"], map(decode, row), strict=True)) for row in table["data"]])
    return parsed


def parse_state(text: str) -> OvsState:
    """Build the state from the output of :func:`read_state`'s call."""
    bridge_rows, port_rows, interface_rows = tables(text)
    owner: dict[str, str] = {}
    bridges = {}
    for row in bridge_rows:
        owner.update(dict.fromkeys(_members(row["ports"]), row["name"]))
        bridges[row["name"]] = OvsBridge(
            row["name"], row["datapath_type"] or "system", row["fail_mode"], row["external_ids"]
        )
    interfaces = {row["_uuid"]: row for row in interface_rows}
    ports = (_port(row, owner.get(row["_uuid"], ""), interfaces) for row in port_rows)
    return OvsState(bridges, {port.name: port for port in ports})


def _members(value: Any) -> list[Any]:
    """A set as a list: the notation has a set of one as the thing itself."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _port(row: Mapping[str, Any], bridge: str, interfaces: Mapping[str, Mapping[str, Any]]) -> OvsPort:
    own = [interfaces[uuid] for uuid in _members(row["interfaces"]) if uuid in interfaces]
    return OvsPort(
        row["name"],
        bridge,
        row["tag"],
        row["external_ids"],
        row["vlan_mode"],
        tuple(interface["name"] for interface in own if (interface["ofport"] or -1) > 0),
        {key: value for interface in own for key, value in interface["external_ids"].items()},
    )


def vsctl(*arguments: str) -> Completed:
    """Call ``ovs-vsctl`` once.

    It exits with 0 even when ovs-vswitchd could not set up an interface and only warns
    on stderr, so that warning is made an error here.
    """
    argv = ("ovs-vsctl", f"--timeout={TIMEOUT}", *arguments)
    done = run(argv, timeout=TIMEOUT + 5)
    for line in done.stderr.splitlines():
        if "Error detected while setting up" in line:
            raise CommandError(argv, line.removeprefix("ovs-vsctl: "))
    return done


def read_state() -> OvsState:
    """Read all bridges and ports."""
    done = vsctl(
        "--format=json",
        "--",
        "--columns=name,datapath_type,fail_mode,external_ids,ports",
        "list",
        "Bridge",
        "--",
        "--columns=_uuid,name,tag,vlan_mode,external_ids,interfaces",
        "list",
        "Port",
        "--",
        "--columns=_uuid,name,ofport,external_ids",
        "list",
        "Interface",
    )
    return parse_state(done.stdout)


Transaction = tuple[tuple[str, ...], ...]
"""Commands of ``ovs-vsctl`` that are applied together or not at all; empty if nothing is to be done."""


def apply(transaction: Transaction) -> None:
    """Apply *transaction* in one call; an empty one costs nothing."""
    if transaction:
        vsctl(*(word for command in transaction for word in ("--", *command)))


def _map_settings(column: str, wanted: Mapping[str, str], present: Mapping[str, str]) -> list[str]:
    changed = {key: value for key, value in sorted(wanted.items()) if present.get(key) != value}
    return [f"{column}:{quote(key)}={quote(value)}" for key, value in changed.items()]


def quote(text: str) -> str:
    """Write *text* as a string of the database's notation (ovs-vsctl(8), "Database Values")."""
    return json.dumps(text)


def plan_bridge(want: BridgeSpec, have: OvsState) -> Transaction:
    """Return what makes the bridge as wanted, and one that containers' ports can be guarded in.

    It drops what no flow allows.  The host's own port, by default a trunk and so in every
    job's network, becomes one for untagged frames.

    Raises:
        HostError: the uplink is a port of another bridge, which is not ours to take apart.
    """
    bridge = have.bridges.get(want.name)
    commands: list[tuple[str, ...]] = []
    if bridge is None:
        commands.append(("add-br", want.name))
        bridge = OvsBridge(want.name, "")
    settings = []
    if want.datapath_type and bridge.datapath_type != want.datapath_type:
        settings.append(f"datapath_type={want.datapath_type}")
    if bridge.fail_mode != SECURE:
        settings.append(f"fail_mode={SECURE}")
    settings += _map_settings("external_ids", want.external_ids, bridge.external_ids)
    if settings:
        commands.append(("set", "Bridge", want.name, *settings))
    local = have.ports.get(want.name)
    if local is None or local.tag is None:
        commands.append(("set", "Port", want.name, "tag=0", "vlan_mode=access"))
    if want.uplink:
        uplink = have.ports.get(want.uplink)
        if uplink is None:
            commands.append(("add-port", want.name, want.uplink))
        elif uplink.bridge != want.name:
            raise HostError(f"{want.uplink} is already a port of bridge {uplink.bridge}, not of {want.name}")
    return tuple(commands)


@dataclass(frozen=True)
class Uplink:
    """The host's interface to the other hosts, as the kernel has it."""

    name: str
    up: bool
    merging: tuple[str, ...]
    """Offloads that are on and make one large frame of several received ones."""


def read_uplink(name: str) -> Uplink:
    """Read the interface *name*; it must exist."""
    (link,) = json.loads(run(("ip", "-json", "link", "show", "dev", name)).stdout)
    (features,) = json.loads(run(("ethtool", "--json", "-k", name)).stdout)
    merging = tuple(
        feature
        for feature in ("generic-receive-offload", "large-receive-offload")
        if features[feature]["active"] and not features[feature]["fixed"]
    )
    return Uplink(name, "UP" in link["flags"], merging)


def plan_uplink(uplink: Uplink, datapath_type: str) -> tuple[tuple[str, ...], ...]:
    """Return the commands that make *uplink* fit to carry job networks.

    The userspace datapath takes frames of at most the MTU from an interface and drops
    what the kernel merged into larger ones, so merging is switched off for it.
    """
    commands: list[tuple[str, ...]] = []
    if datapath_type == "netdev" and uplink.merging:
        switches = [word for feature in uplink.merging for word in (feature, "off")]
        commands.append(("ethtool", "-K", uplink.name, *switches))
    if not uplink.up:
        commands.append(("ip", "link", "set", uplink.name, "up"))
    return tuple(commands)


def plan_bridge_absent(name: str, have: OvsState) -> Transaction:
    """Return what removes the bridge and all its ports."""
    return (("del-br", name),) if name in have.bridges else ()


def plan_port(
    bridge: str, name: str, tag: int, external_ids: Mapping[str, str], have: OvsState
) -> Transaction:
    """Return what makes *name* an access port of *bridge* with the VLAN *tag*, 0 for untagged frames.

    A new port gets tag and marks in the transaction that creates it, so it is never, not
    for a moment, untagged and in everyone's network.
    """
    port = have.ports.get(name)
    settings = []
    if port is None or (port.tag, port.vlan_mode) != (tag, "access"):
        # "access" said outright: frames that arrive with a tag of the sender's own are dropped.
        settings += [f"tag={tag:d}", "vlan_mode=access"]
    settings += _map_settings("external_ids", external_ids, port.external_ids if port else {})
    if port is None:
        marks = _map_settings("external_ids", external_ids, {})
        interface = [("set", "Interface", name, *marks)] if marks else []  # where ovs-docker looks for them
        return (("add-port", bridge, name, *settings), *interface)
    if port.bridge != bridge:
        raise HostError(f"{name} is already a port of bridge {port.bridge}, not of {bridge}")
    return (("set", "Port", name, *settings),) if settings else ()


def plan_ports_absent(names: Sequence[str]) -> Transaction:
    """Return what removes the ports *names*, in whatever bridge they are."""
    return tuple(("--if-exists", "del-port", name) for name in names)


def kernel_datapath() -> bool:
    """Tell whether the kernel has Open vSwitch's datapath, loading its module if there is one.

    Asks the kernel for the generic netlink family ``ovs_datapath`` (CTRL_CMD_GETFAMILY of
    linux/genetlink.h), which is right for a built-in datapath as well.
    """
    name = b"ovs_datapath\0"
    attribute = struct.pack("=HH", 4 + len(name), 2) + name  # CTRL_ATTR_FAMILY_NAME
    attribute += b"\0" * (-len(attribute) % 4)
    body = struct.pack("=BBH", 3, 1, 0) + attribute  # CTRL_CMD_GETFAMILY, version 1
    header = struct.pack("=IHHII", 16 + len(body), 16, 1, 1, 0)  # GENL_ID_CTRL, NLM_F_REQUEST
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16) as kernel:  # NETLINK_GENERIC
        kernel.settimeout(TIMEOUT)
        kernel.send(header + body)
        answer = kernel.recv(4096)
    (kind,) = struct.unpack_from("=H", answer, 4)
    return bool(kind != 2)  # NLMSG_ERROR
