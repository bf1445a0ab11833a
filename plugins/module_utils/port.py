# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container's port in an Open vSwitch bridge: a veth pair, one end in each.

The model is ovs-docker(8).  Unlike it, every step is checked, VLAN tag and marks are
part of the transaction that makes the port, the container can send from its own
addresses only, what is already right is left alone, and removing needs no living
container: port and flows are found by their marks.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import flows, names, ovs
from .command import CommandError, run
from .errors import HostError
from .switch import daemon_runs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence


CREATE = "create link"

PATIENCE, PAUSE = 3.0, 0.5
"""Seconds after its first try in which a step that may be repeated is tried again, and between tries."""


@dataclass(frozen=True)
class PortSpec:
    """The wanted port; ``None`` leaves a property to the kernel or as it is."""

    bridge: str
    container_id: str
    pid: int
    link: str
    interface: str
    address: str | None = None
    vlan: int | None = None
    mtu: int | None = None
    mac: str | None = None
    gateway: str | None = None
    alias: str | None = None
    external_ids: Mapping[str, str] = field(default_factory=dict)
    owner: str | None = None
    """Whose mark the flows carry; the port's own if not said."""

    def __post_init__(self) -> None:
        """Refuse what would be more than one word in the commands for ``ip``."""
        for word in (self.link, self.interface, self.address, self.mac, self.gateway, self.alias):
            if word is not None and (not word or any(letter.isspace() for letter in word)):
                raise HostError(f"not a name or an address: {word!r}")

    @property
    def identity(self) -> dict[str, str]:
        """The marks by which ovs-docker, and we, find the port."""
        return {names.OVS_CONTAINER: self.container_id, names.OVS_INTERFACE: self.interface}

    def guard(self, present: Sequence[str] = ()) -> flows.Guard:
        """What the container may send; without a wanted address, from the first of those *present*."""
        address = self.address or next((item for item in present if ":" not in item), None)
        return flows.Guard.of(self.owner or self.link, self.link, address, self.mac)

    def marks(self, guard: flows.Guard) -> dict[str, str]:
        """All ``external_ids`` of the port."""
        return {**self.external_ids, **self.identity, **guard.marks}


@dataclass(frozen=True)
class InnerLink:
    """The end of the pair that lies in the container's network namespace."""

    mac: str
    mtu: int
    up: bool
    addresses: tuple[str, ...]
    tx_checksum: bool
    gateway: str | None = None


@dataclass(frozen=True)
class Have:
    """What there is: the switch, the host's links of the wanted names, the container's link."""

    state: ovs.OvsState
    links: frozenset[str] = frozenset()
    inner: InnerLink | None = None
    flows: frozenset[flows.Flow] | None = None
    """Our flows in the bridge, ``None`` if nobody looked."""


@dataclass(frozen=True)
class Run:
    """A step that runs a program; one that only *deletes* links has not failed when they are gone.

    One that may be repeated is tried again for *patience* seconds: a switch under load turns a connection away.
    """

    name: str
    argv: tuple[str, ...]
    input: str | None = None
    deletes: tuple[str, ...] = ()
    patience: float = 0.0


@dataclass(frozen=True)
class Commit:
    """A step that is one OVSDB transaction."""

    name: str
    transaction: ovs.Transaction


@dataclass(frozen=True)
class Write:
    """A step that sets kernel parameters of a link."""

    name: str
    values: tuple[tuple[str, str], ...]


Step = Run | Commit | Write


def link_exists(name: str) -> bool:
    """Tell whether this network namespace has a link *name*."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def in_container(pid: int, *argv: str) -> tuple[str, ...]:
    """Build the command that runs *argv* in the network namespace of process *pid*."""
    return ("nsenter", f"--net=/proc/{pid:d}/ns/net", *argv)


def read_inner(pid: int, interface: str, with_routes: bool = False) -> InnerLink | None:
    """Read the container's link, or return ``None`` if it has none of that name."""
    shown = json.loads(run(in_container(pid, "ip", "-json", "address")).stdout)
    link = next((item for item in shown if item.get("ifname") == interface), None)
    if link is None:
        return None
    features = json.loads(run(in_container(pid, "ethtool", "--json", "-k", interface)).stdout)[0]
    gateway = None
    if with_routes:
        routes = json.loads(run(in_container(pid, "ip", "-json", "route", "show", "default")).stdout)
        gateway = next((route.get("gateway") for route in routes if route.get("dev") == interface), None)
    return InnerLink(
        mac=link["address"],
        mtu=link["mtu"],
        up="UP" in link["flags"],
        addresses=tuple(
            f"{item['local']}/{item['prefixlen']}" for item in link["addr_info"] if item["scope"] == "global"
        ),
        tx_checksum=any(
            state["active"] and not state["fixed"]
            for name, state in features.items()
            if name.startswith("tx-checksum") and isinstance(state, dict)
        ),
        gateway=gateway,
    )


def read_have(want: PortSpec, state: ovs.OvsState) -> Have:
    """Read what is there of *want*, in the switch, on the host and in the container."""
    state.guarded_bridge(want.bridge)
    candidates = {want.link, *(port.name for port in state.find(want.identity))}
    return Have(
        state,
        frozenset(name for name in candidates if link_exists(name)),
        read_inner(want.pid, want.interface, with_routes=want.gateway is not None),
        flows.read(want.bridge),
    )


def plan_attach(want: PortSpec, have: Have) -> tuple[Step, ...]:
    """Return the steps that make the port as wanted; none if it is.

    Raises:
        HostError: the bridge is missing or cannot be guarded, or the container has an
            interface of that name which is not ours.
    """
    userspace = have.state.guarded_bridge(want.bridge).datapath_type == "netdev"
    own = have.state.find(want.identity)
    if len(own) == 1 and own[0].name in have.links and have.inner and own[0].bridge == want.bridge:
        return _plan_existing(want, own[0].name, have.inner, have, userspace)
    if have.inner and not have.links:
        raise HostError(
            f"container {want.container_id[:12]} already has an interface {want.interface}, and it is not "
            f"ours; remove it or ask for another name"
        )
    stale = {port.name for port in own} | ({want.link} & have.state.ports.keys())
    cleaned = ovs.OvsState(
        have.state.bridges, {name: port for name, port in have.state.ports.items() if name not in stale}
    )
    cookie = want.guard().cookie
    moved = frozenset((item.bridge, cookie) for item in own if item.bridge != want.bridge)
    return (*plan_detach(sorted(stale), sorted(have.links), moved), *_plan_new(want, cleaned, userspace))


def _plan_new(want: PortSpec, state: ovs.OvsState, userspace: bool) -> tuple[Step, ...]:
    """Plan a new pair.

    The port is in the switch before the interface gets its address, so a process that
    waits for the address finds the network complete.  It is in it before it has flows,
    and until then, and while the interface is down, nothing passes.
    """
    guard = want.guard()
    mtu = f" mtu {want.mtu:d}" if want.mtu else ""
    mac = f" address {guard.mac}"
    alias = f"link set {want.link} alias {want.alias}\n" if want.alias else ""
    create = (
        f"link add {want.link}{mtu} type veth peer name {want.interface}{mac}{mtu} netns {want.pid:d}\n"
        f"{alias}link set {want.link} addrgenmode none up\n"
    )
    attach = ovs.plan_port(want.bridge, want.link, want.vlan or 0, want.marks(guard), state)
    return (
        Run(CREATE, ("ip", "-batch", "-"), create),
        *((_keep_from_host(want.link),) if userspace else ()),
        Commit("attach port", attach),
        *_guard(want.bridge, flows.plan_port(guard, want.link, flows.of_others(state, want.bridge), None)),
        *((_offload_off(want),) if userspace else ()),
        _configure(want, [*_first_lines(want), *_address_lines(want, ()), *_up_lines(want, None)]),
    )


def _guard(bridge: str, lines: Sequence[str]) -> tuple[Step, ...]:
    if not lines:
        return ()
    return (
        Run("set flows", flows.setting(bridge), "".join(f"{line}\n" for line in lines), patience=PATIENCE),
    )


def _first_lines(want: PortSpec) -> list[str]:
    # IPv6 is dropped in the switch; without an address of it no program tries.
    return ["link set lo up", f"link set {want.interface} addrgenmode none"]


def _plan_existing(
    want: PortSpec, name: str, inner: InnerLink, have: Have, userspace: bool
) -> tuple[Step, ...]:
    """Plan the change of a port that is there, alive and ours."""
    steps: list[Step] = []
    guard = want.guard(inner.addresses)
    change = ovs.plan_port(want.bridge, name, want.vlan or 0, want.marks(guard), have.state)
    if change:
        steps.append(Commit("change port", change))
    others = flows.of_others(have.state, want.bridge)
    steps += _guard(want.bridge, flows.plan_port(guard, name, others, have.flows))
    if userspace and inner.tx_checksum:
        steps.append(_offload_off(want))
    lines = []
    if guard.mac != inner.mac:
        lines.append(f"link set {want.interface} address {guard.mac}")
    if want.mtu and want.mtu != inner.mtu:
        lines.append(f"link set {want.interface} mtu {want.mtu:d}")
        steps.append(Run("set MTU", ("ip", "link", "set", name, "mtu", str(want.mtu))))
    lines += _address_lines(want, inner.addresses)
    lines += _up_lines(want, inner)
    if lines:
        steps.append(_configure(want, lines))
    return tuple(steps)


def _address_lines(want: PortSpec, present: Sequence[str]) -> list[str]:
    if want.address is None or tuple(present) == (want.address,):
        return []
    lines = [f"address delete {old} dev {want.interface}" for old in present if old != want.address]
    # "replace" where ovs-docker has "add": the same address again is no "File exists".
    return [*lines, f"address replace {want.address} dev {want.interface}"]


def _up_lines(want: PortSpec, inner: InnerLink | None) -> list[str]:
    lines = [] if inner and inner.up else [f"link set {want.interface} up"]
    if want.gateway and not (inner and inner.up and inner.gateway == want.gateway):
        lines.append(f"route replace default via {want.gateway} dev {want.interface}")
    return lines


def _configure(want: PortSpec, lines: Sequence[str]) -> Run:
    return Run(
        "configure interface",
        in_container(want.pid, "ip", "-batch", "-"),
        "".join(f"{line}\n" for line in lines),
    )


def _offload_off(want: PortSpec) -> Run:
    """Make the sender complete its checksums.

    The userspace datapath passes frames on as they are, so with the offload on, TCP
    segments arrive with a wrong checksum and are dropped, while ping works.
    """
    return Run(
        "transmit checksum offload off",
        in_container(want.pid, "ethtool", "-K", want.interface, "tx", "off"),
    )


def _keep_from_host(link: str) -> Write:
    """Keep the container's frames from the host's own IP stack.

    The userspace datapath reads a link through a packet socket, which gives it a copy:
    the host's stack sees every frame as well and would answer ARP for the host's
    addresses, take packets sent to them and route others.  On a link without an address
    any reverse path filter drops all of IPv4 (fib_validate_source of the kernel).
    """
    v4, v6 = f"/proc/sys/net/ipv4/conf/{link}", f"/proc/sys/net/ipv6/conf/{link}"
    return Write(
        "keep frames from the host",
        (
            (f"{v4}/arp_ignore", "8"),
            (f"{v4}/rp_filter", "1"),
            (f"{v4}/forwarding", "0"),
            (f"{v6}/disable_ipv6", "1"),
        ),
    )


Guarded = frozenset[tuple[str, int]]
"""Marks of flows, each with the bridge that has such flows."""


def plan_detach(
    ports: Sequence[str], links: Sequence[str], guarded: Guarded = frozenset()
) -> tuple[Step, ...]:
    """Return the steps that remove *ports* from their bridges, delete *links*, and remove flows."""
    steps: list[Step] = []
    if ports:
        steps.append(Commit("remove port", ovs.plan_ports_absent(ports)))
    if links:
        lines = "".join(f"link delete {name}\n" for name in links)
        steps.append(Run("delete link", ("ip", "-force", "-batch", "-"), lines, tuple(links)))
    steps += (
        Run("remove flows", flows.removing(bridge, cookie), patience=PATIENCE)
        for bridge, cookie in sorted(guarded)
    )
    return tuple(steps)


def execute(steps: Sequence[Step]) -> None:
    """Carry out *steps* in their order; the first that fails raises a ``HostError``."""
    for step in steps:
        match step:
            case Run():
                _run(step)
            case Commit(transaction=transaction):
                ovs.apply(transaction)
            case Write(values=values):
                for path, value in values:
                    _write(path, value)


def _run(step: Run) -> None:
    end = time.monotonic() + step.patience
    while True:
        try:
            run(step.argv, input=step.input)
            return
        except CommandError:
            # A veth goes by itself, a moment after the network namespace of its other end.
            if step.deletes and not any(map(link_exists, step.deletes)):
                return
            if time.monotonic() >= end:
                raise
        time.sleep(PAUSE)


def _write(path: str, value: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as parameter:
            parameter.write(value)
    except FileNotFoundError:
        # A kernel without IPv6 has no such parameter; the link itself was made a step before.
        if "/ipv6/" not in path:
            raise HostError(f"cannot set {path}: no such kernel parameter") from None
    except OSError as error:
        raise HostError(f"cannot set {path}: {error.strerror}") from error


def attach(want: PortSpec, have: Have) -> tuple[Step, ...]:
    """Make the port as wanted; if making a new one fails, take down what there is of it, then raise."""
    steps = plan_attach(want, have)
    try:
        execute(steps)
    except HostError:
        if any(step.name == CREATE for step in steps):
            guarded = frozenset({(want.bridge, want.guard().cookie)})
            detach([port.name for port in ovs.read_state().find(want.identity)], [want.link], guarded)
        raise
    return steps


def detach(ports: Sequence[str], links: Sequence[str], guarded: Guarded = frozenset()) -> tuple[Step, ...]:
    """Remove *ports*, those of *links* (and of the ports' links) that exist, and flows."""
    removed: tuple[Step, ...] = plan_detach(ports, ())
    execute(removed)
    # Only now: a veth whose other end died with its container is gone on its own.
    leftover = sorted(name for name in {*ports, *links} if link_exists(name))
    steps = plan_detach((), leftover, guarded)
    execute(steps)
    return (*removed, *steps)


def links_with_alias(alias: str) -> tuple[str, ...]:
    """Return the veth links of this host that carry *alias*."""
    shown = json.loads(run(("ip", "-json", "link", "show", "type", "veth")).stdout or "[]")
    return tuple(link["ifname"] for link in shown if link.get("ifalias") == alias)


def look_for_flows(
    state: ovs.OvsState, bridges: Iterable[str], cookies: Collection[int]
) -> Mapping[str, frozenset[flows.Flow]]:
    """Return by bridge the flows that carry one of *cookies*.

    Raises:
        CommandError: a bridge that may have some did not answer.
    """
    found: dict[str, frozenset[flows.Flow]] = {}
    for bridge in sorted(state.bridges.keys() & set(bridges)):
        try:
            there = flows.read(bridge)
        except CommandError:
            if daemon_runs():
                raise
            continue  # flows are in its memory only
        if own := frozenset(flow for flow in there if flow.cookie in cookies):
            found[bridge] = own
    return found


def marks_of(found: Mapping[str, Iterable[flows.Flow]]) -> Guarded:
    """Return what removes the flows *found*, by bridge."""
    return frozenset((bridge, flow.cookie) for bridge, own in found.items() for flow in own)


def link_name(container: str, interface: str) -> str:
    """Host side of the pair of a container that belongs to no job."""
    return names.port_name(f"{container}/{interface}")


def of_container(state: ovs.OvsState, container: str, interface: str) -> tuple[str, ...]:
    """Find a container's ports without asking Docker, so also when the container is gone.

    Args:
        state: the switch.
        container: the container's name, its id, or at least 12 digits of that.
        interface: the interface in the container.
    """
    by_name = {link_name(container, interface), names.port_name(container)}
    return tuple(
        found.name
        for found in state.find({names.OVS_INTERFACE: interface})
        if found.name in by_name
        or (len(container) >= 12 and found.external_ids.get(names.OVS_CONTAINER, "").startswith(container))
    )
