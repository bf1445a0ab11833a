# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenFlow flows of a job bridge: what a container may send, and nothing else.

The bridge's fail mode is ``secure``: what no flow allows is dropped.  So a port without
flows is a dead one: one that is just being made, one whose flows could not be set, and
each port after ovs-vswitchd has died, since flows live in its memory only.  What they are
made from stands in the database, from which they are put back.

``ovs-ofctl --bundle`` would apply them at once, but takes twice as long (it looks up each
port's name anew).  It isn't needed where what is not there yet is dropped.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import names
from .command import run
from .errors import HostError
from .ovs import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .ovs import OvsPort, OvsState

ALLOW, REFUSE = 200, 100
"""Priorities of a port's flows."""

UNTAGGED = "vlan_tci=0x0000/0x1fff"
"""No 802.1Q or 802.1ad header; one with VLAN 0, which an access port would take, is a header too."""

LOCAL = "LOCAL"
"""OpenFlow's name of the host's own port in a bridge."""

_FLOW = re.compile(
    r" *cookie=(?P<cookie>\w+), +(?:priority=(?P<priority>\d+),?)?(?P<match>\S*?) ?actions=(?P<actions>\S+)"
)


@dataclass(frozen=True)
class Flow:
    """A flow of table 0.  *match* is in the words and values in which ``ovs-ofctl`` shows it."""

    cookie: int
    priority: int
    match: frozenset[str]
    actions: str

    def __str__(self) -> str:
        """Return it as ``ovs-ofctl add-flow`` takes it."""
        return f"cookie={self.cookie:#x},{self._key},actions={self.actions}"

    @property
    def _key(self) -> str:
        return ",".join((f"priority={self.priority}", *sorted(self.match)))

    @property
    def removal(self) -> str:
        """The line of ``ovs-ofctl add-flows`` that removes exactly this flow."""
        return f"delete_strict cookie={self.cookie:#x}/-1,{self._key}"

    @property
    def port(self) -> str:
        """The port it is about."""
        return next((word[8:] for word in self.match if word.startswith("in_port=")), "")

    @property
    def forlorn(self) -> bool:
        """Tell whether its port is gone: then ``ovs-ofctl`` shows a number, as there is no name."""
        return self.port.isdigit()


def ipv4(address: str) -> str:
    """Return the IPv4 address of *address*, which may have a prefix length.

    Raises:
        HostError: it is none.
    """
    try:
        return str(ipaddress.IPv4Interface(address).ip)
    except ValueError:
        raise HostError(f"not an IPv4 address with its prefix length: {address}") from None


@dataclass(frozen=True)
class Guard:
    """Whom a container's port belongs to, and the only addresses it may send from."""

    cookie: int
    mac: str
    address: str | None

    @classmethod
    def of_marks(cls, marks: Mapping[str, str]) -> Guard | None:
        """Build it from a port's ``external_ids``; ``None`` if they don't say."""
        if not marks.keys() >= {names.OVS_COOKIE, names.OVS_MAC}:
            return None
        return cls(int(marks[names.OVS_COOKIE], 16), marks[names.OVS_MAC], marks.get(names.OVS_ADDRESS))

    @classmethod
    def of(cls, owner: str, port: str, address: str | None, mac: str | None = None) -> Guard:
        """Build it for *port* of *owner*, from the address wanted and a hardware address if one is.

        Raises:
            HostError: the address is none of IPv4.
        """
        hardware = (mac or names.mac_address(port)).lower()
        return cls(names.flow_cookie(owner), hardware, ipv4(address) if address else None)

    @property
    def marks(self) -> dict[str, str]:
        """The ``external_ids`` that say all of it."""
        marks = {names.OVS_COOKIE: f"{self.cookie:#x}", names.OVS_MAC: self.mac}
        return {**marks, names.OVS_ADDRESS: self.address} if self.address else marks

    def flows(self, port: str) -> frozenset[Flow]:
        """The flows of *port*: ARP and IPv4 from the own addresses pass, all else is dropped.

        All else: forged senders, IPv6, tagged frames, LLDP, spanning tree, any other protocol.
        """
        refuse = Flow(self.cookie, REFUSE, frozenset({f"in_port={port}"}), "drop")
        if not self.address:
            return frozenset({refuse})
        own = {f"in_port={port}", UNTAGGED, f"dl_src={self.mac}"}
        arp = {"arp", f"arp_spa={self.address}", f"arp_sha={self.mac}"}
        allowed = (own | arp, own | {"ip", f"nw_src={self.address}"})
        return frozenset(
            {refuse, *(Flow(self.cookie, ALLOW, frozenset(match), "NORMAL") for match in allowed)}
        )


def trusted(port: str) -> Flow:
    """The flow of a port that is no container's: the uplink, what the site has, the host's own."""
    return Flow(names.FLOW_COOKIES, REFUSE, frozenset({f"in_port={port}"}), "NORMAL")


def of_others(state: OvsState, bridge: str) -> frozenset[Flow]:
    """The flows of *bridge* for all ports that are no container's."""
    others = (port for port in _ports(state, bridge) if not port.containers)
    return frozenset(
        trusted(LOCAL if name == bridge else name) for port in others for name in port.interfaces
    )


def of_bridge(state: OvsState, bridge: str) -> frozenset[Flow]:
    """All flows that *bridge* is to have, from what its database says."""
    guards = ((port, Guard.of_marks(port.external_ids)) for port in _ports(state, bridge) if port.interfaces)
    return of_others(state, bridge).union(*(guard.flows(port.name) for port, guard in guards if guard))


def _ports(state: OvsState, bridge: str) -> list[OvsPort]:
    return [port for port in state.ports.values() if port.bridge == bridge]


def parse(text: str) -> frozenset[Flow]:
    """Read what ``ovs-ofctl --names --no-stats dump-flows`` shows."""
    return frozenset(
        Flow(
            int(found["cookie"], 16),
            int(found["priority"] or 32768),
            frozenset(found["match"].replace('"', "").split(",")),
            found["actions"],
        )
        for found in map(_FLOW.match, text.splitlines())
        if found
    )


def read(bridge: str) -> frozenset[Flow]:
    """Read our flows of *bridge*."""
    ours = f"cookie={names.FLOW_COOKIES:#x}/{names.FLOW_COOKIES_MASK:#x}"
    argv = ("ovs-ofctl", f"--timeout={TIMEOUT}", "--names", "--no-stats", "dump-flows", bridge, ours)
    return parse(run(argv, timeout=TIMEOUT + 5).stdout)


def of_owner(flows: Iterable[Flow], cookie: int) -> frozenset[Flow]:
    """Those of *flows* that carry the mark *cookie*."""
    return frozenset(flow for flow in flows if flow.cookie == cookie)


def plan_port(
    guard: Guard, port: str, others: Iterable[Flow], have: frozenset[Flow] | None
) -> tuple[str, ...]:
    """Return the lines for ``ovs-ofctl add-flows`` that guard *port*; none if it is guarded.

    Args:
        guard: what it may send.
        port: its name.
        others: the flows of the ports that are no container's, which a bridge may have lost as well.
        have: our flows in the bridge, ``None`` if that is not known.
    """
    want = guard.flows(port)
    if have is not None:
        about = {flow for flow in have if flow.cookie == guard.cookie or flow.port == port}
        if about == want and have.issuperset(others):
            return ()
    # A number is given to a port anew after a while: what an earlier port had under it goes first.
    remove = (f"delete cookie={guard.cookie:#x}/-1", f"delete in_port={port}")
    refuse_first = sorted(want, key=lambda flow: flow.priority)
    return (*remove, *(f"add {flow}" for flow in (*refuse_first, *sorted(others, key=str))))


def plan_bridge(want: frozenset[Flow], have: frozenset[Flow]) -> tuple[str, ...]:
    """Return the lines for ``ovs-ofctl add-flows`` that put back what is missing.

    Of the rest only the flows of ports that are gone are removed: a port not wanted here
    may be one of a job that has started since.
    """
    stale = {flow for flow in have - want if flow.forlorn}
    return (
        *sorted(flow.removal for flow in stale),
        *(f"add {flow}" for flow in sorted(want - have, key=lambda flow: (flow.priority, str(flow)))),
    )


def setting(bridge: str) -> tuple[str, ...]:
    """Build the command that takes such lines on its standard input."""
    return ("ovs-ofctl", f"--timeout={TIMEOUT}", "add-flows", bridge, "-")


def apply(bridge: str, lines: Iterable[str]) -> None:
    """Give such lines to the bridge.

    Raises:
        HostError: it did not take them.
    """
    run(setting(bridge), input="".join(f"{line}\n" for line in lines))


def removing(bridge: str, cookie: int) -> tuple[str, ...]:
    """Build the command that removes the flows marked *cookie*."""
    return ("ovs-ofctl", f"--timeout={TIMEOUT}", "del-flows", bridge, f"cookie={cookie:#x}/-1")
