# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flows of a bridge: from what they are made, how they are read, what is planned."""

from __future__ import annotations

import pytest
from dockerjob_core import flows, names, ovs
from dockerjob_core.errors import HostError

GUARD = flows.Guard.of("748", "dj1", "10.9.0.1/24")
PORT = ovs.OvsPort("dj1", "br-job", 31, {"container_id": "c", **GUARD.marks}, "access", ("dj1",))
BRIDGE = ovs.OvsBridge("br-job", "netdev", "secure")


def recorded(port: str = "dj1") -> str:
    """What ``ovs-ofctl --names --no-stats dump-flows`` 3.1.0 printed."""
    own = f"in_port={port},vlan_tci=0x0000/0x1fff,dl_src={GUARD.mac}"
    return (
        f" cookie={GUARD.cookie:#x}, priority=200,arp,{own},arp_spa=10.9.0.1,arp_sha={GUARD.mac} actions=NORMAL\n"
        f" cookie={GUARD.cookie:#x}, priority=200,ip,{own},nw_src=10.9.0.1 actions=NORMAL\n"
        f" cookie={GUARD.cookie:#x}, priority=100,in_port={port} actions=drop\n"
    )


def switch(*ports: ovs.OvsPort) -> ovs.OvsState:
    return ovs.OvsState({"br-job": BRIDGE}, {port.name: port for port in ports})


class TestMarks:
    def test_mac_is_unicast_and_locally_administered(self) -> None:
        for number in range(300):
            first = int(names.mac_address(f"dj{number}")[:2], 16)
            assert first & 3 == 2

    def test_cookies_are_ours_and_differ(self) -> None:
        cookies = {names.flow_cookie(owner) for owner in ("70", "70_1", "dj1")}
        assert len(cookies) == 3
        assert {cookie & names.FLOW_COOKIES_MASK for cookie in cookies} == {names.FLOW_COOKIES}

    def test_marks_say_all_of_a_guard(self) -> None:
        assert flows.Guard.of_marks(GUARD.marks) == GUARD
        assert flows.Guard.of_marks({"container_id": "c"}) is None

    @pytest.mark.parametrize(
        "address", ["nonsense", "10.8.0.1/99", "fd00::1/64", "10.8.0.1/24,actions=NORMAL"]
    )
    def test_no_address_of_ipv4(self, address: str) -> None:
        with pytest.raises(HostError, match="not an IPv4 address"):
            flows.ipv4(address)


class TestParse:
    def test_what_is_shown_is_what_was_wanted(self) -> None:
        assert flows.parse(recorded()) == GUARD.flows("dj1")

    def test_quoted_name(self) -> None:
        assert flows.parse(recorded('"dj-1.0"')) == GUARD.flows("dj-1.0")

    def test_port_that_is_gone_has_a_number(self) -> None:
        assert all(flow.forlorn for flow in flows.parse(recorded("17")))
        assert not any(flow.forlorn for flow in flows.parse(recorded()))

    def test_default_priority(self) -> None:
        flow, other = sorted(
            flows.parse(" cookie=0x0, actions=NORMAL\n cookie=0x1, in_port=dj1 actions=drop\n"),
            key=lambda flow: flow.cookie,
        )
        assert (flow.priority, flow.actions) == (32768, "NORMAL")
        assert (other.priority, other.port) == (32768, "dj1")


class TestPort:
    def test_guarded(self) -> None:
        assert flows.plan_port(GUARD, "dj1", (), GUARD.flows("dj1")) == ()

    def test_closed_before_anything_is_allowed(self) -> None:
        lines = flows.plan_port(GUARD, "dj1", (flows.trusted("eth1"),), None)
        assert [line.split()[0] for line in lines] == ["delete"] * 2 + ["add"] * 4
        assert lines[2].endswith(f"priority={flows.REFUSE},in_port=dj1,actions=drop")
        assert lines[-1].endswith("in_port=eth1,actions=NORMAL")

    def test_without_an_address_nothing_is_allowed(self) -> None:
        (flow,) = flows.Guard.of("748", "dj1", None).flows("dj1")
        assert flow.actions == "drop"

    @pytest.mark.parametrize(
        "extra",
        [flows.trusted("dj1"), *flows.Guard.of("749", "dj1", "10.9.0.9/24").flows("dj1")],
        ids=["trusted", "a", "b", "c"],
    )
    def test_flow_too_much(self, extra: flows.Flow) -> None:
        assert flows.plan_port(GUARD, "dj1", (), GUARD.flows("dj1") | {extra})

    def test_uplink_without_a_flow(self) -> None:
        assert flows.plan_port(GUARD, "dj1", (flows.trusted("eth1"),), GUARD.flows("dj1"))

    def test_neighbours_flows_are_no_difference(self) -> None:
        neighbour = flows.Guard.of("749", "dj2", "10.9.0.9/24").flows("dj2")
        assert flows.plan_port(GUARD, "dj1", (), GUARD.flows("dj1") | neighbour) == ()


class TestBridge:
    def test_all_is_made_from_the_database(self) -> None:
        state = switch(
            PORT,
            ovs.OvsPort("br-job", "br-job", 0, interfaces=("br-job",)),
            ovs.OvsPort("bond0", "br-job", interfaces=("eth1", "eth2")),
            ovs.OvsPort("gone0", "br-job"),
            ovs.OvsPort("eth9", "br-other", interfaces=("eth9",)),
            ovs.OvsPort("docker1", "br-job", interfaces=("docker1",), interface_ids={"container_id": "d"}),
        )
        others = {flows.trusted(name) for name in ("LOCAL", "eth1", "eth2")}
        assert flows.of_others(state, "br-job") == others
        assert flows.of_bridge(state, "br-job") == others | GUARD.flows("dj1")

    def test_what_is_missing_is_added(self) -> None:
        lines = flows.plan_bridge(GUARD.flows("dj1"), frozenset())
        assert [line.split()[0] for line in lines] == ["add"] * 3
        assert "drop" in lines[0]

    def test_flows_of_ports_that_are_gone_go(self) -> None:
        (line,) = flows.plan_bridge(frozenset(), frozenset({flows.trusted("17")}))
        assert line == f"delete_strict cookie={names.FLOW_COOKIES:#x}/-1,priority=100,in_port=17"

    def test_port_made_meanwhile_is_left_alone(self) -> None:
        assert flows.plan_bridge(frozenset(), GUARD.flows("dj1")) == ()
