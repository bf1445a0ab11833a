# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is planned for a switch, from what its database says."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from dockerjob_core import ovs
from dockerjob_core.errors import HostError

BRIDGE = ovs.OvsBridge("br-job", "netdev", "secure", {"owner": "site"})
LOCAL = ovs.OvsPort("br-job", "br-job", 0, vlan_mode="access")
EMPTY = ovs.OvsState({}, {})


def state(*ports: ovs.OvsPort) -> ovs.OvsState:
    return ovs.OvsState({"br-job": BRIDGE}, {port.name: port for port in (LOCAL, *ports)})


def recorded() -> str:
    """What ``ovs-vsctl --format=json`` 3.1.0 printed for a bridge with a trunk and an access port."""
    bridges = {
        "data": [
            [
                "br-job",
                "netdev",
                "secure",
                ["map", [["owner", "site"]]],
                ["set", [["uuid", "u1"], ["uuid", "u2"]]],
            ]
        ],
        "headings": ["name", "datapath_type", "fail_mode", "external_ids", "ports"],
    }
    ports = {
        "data": [
            [["uuid", "u1"], "br-job", ["set", []], ["set", []], ["map", []], ["uuid", "i1"]],
            [["uuid", "u2"], "dj1", 31, "access", ["map", [["dockerjob_job", "748"]]], ["uuid", "i2"]],
        ],
        "headings": ["_uuid", "name", "tag", "vlan_mode", "external_ids", "interfaces"],
    }
    interfaces = {
        "data": [
            [["uuid", "i1"], "br-job", 65534, ["map", []]],
            [["uuid", "i2"], "dj1", -1, ["map", [["container_id", "c1"]]]],
        ],
        "headings": ["_uuid", "name", "ofport", "external_ids"],
    }
    return "".join(f"{json.dumps(table)}\n" for table in (bridges, ports, interfaces))


def test_recorded_output_is_understood() -> None:
    parsed = ovs.parse_state(recorded())
    assert parsed.bridges == {"br-job": BRIDGE}
    assert parsed.ports == {
        "br-job": ovs.OvsPort("br-job", "br-job", interfaces=("br-job",)),
        "dj1": ovs.OvsPort(
            "dj1", "br-job", 31, {"dockerjob_job": "748"}, "access", interface_ids={"container_id": "c1"}
        ),
    }
    assert [port.containers for port in parsed.ports.values()] == [False, True]
    assert parsed.find({"dockerjob_job": "748"}) == (parsed.ports["dj1"],)


def test_bridge_with_a_single_port_is_understood() -> None:
    """A set of one is written as the thing itself (RFC 7047, 5.1)."""
    text = recorded().replace('["set", [["uuid", "u1"], ["uuid", "u2"]]]', '["uuid", "u1"]')
    assert ovs.parse_state(text).ports["br-job"].bridge == "br-job"


def test_missing_bridge_is_named() -> None:
    with pytest.raises(HostError, match="no bridge br-none"):
        EMPTY.bridge("br-none")


class TestBridge:
    def test_new(self) -> None:
        want = ovs.BridgeSpec("br-job", "netdev", "eth1", {"owner": "site"})
        assert ovs.plan_bridge(want, EMPTY) == (
            ("add-br", "br-job"),
            (
                "set",
                "Bridge",
                "br-job",
                "datapath_type=netdev",
                "fail_mode=secure",
                'external_ids:"owner"="site"',
            ),
            ("set", "Port", "br-job", "tag=0", "vlan_mode=access"),
            ("add-port", "br-job", "eth1"),
        )

    def test_as_wanted(self) -> None:
        want = ovs.BridgeSpec("br-job", "netdev", "eth1", {"owner": "site"})
        assert ovs.plan_bridge(want, state(ovs.OvsPort("eth1", "br-job"))) == ()

    def test_only_what_differs(self) -> None:
        want = ovs.BridgeSpec("br-job", "netdev", external_ids={"owner": "site", "use": "jobs"})
        assert ovs.plan_bridge(want, state()) == (("set", "Bridge", "br-job", 'external_ids:"use"="jobs"'),)

    def test_one_that_fails_open_is_closed(self) -> None:
        have = ovs.OvsState({"br-job": replace(BRIDGE, fail_mode=None)}, {"br-job": LOCAL})
        assert ovs.plan_bridge(ovs.BridgeSpec("br-job"), have) == (
            ("set", "Bridge", "br-job", "fail_mode=secure"),
        )
        with pytest.raises(HostError, match="run cluster_setup"):
            have.guarded_bridge("br-job")
        assert state().guarded_bridge("br-job") is BRIDGE

    @pytest.mark.parametrize(("tag", "changes"), [(None, True), (0, False), (9, False)])
    def test_host_leaves_the_vlans(self, tag: int | None, changes: bool) -> None:
        """Unless the site has put it into one of its own."""
        have = ovs.OvsState({"br-job": BRIDGE}, {"br-job": ovs.OvsPort("br-job", "br-job", tag)})
        assert bool(ovs.plan_bridge(ovs.BridgeSpec("br-job"), have)) == changes

    def test_uplink_is_not_taken_from_another_bridge(self) -> None:
        with pytest.raises(HostError, match="already a port of bridge br-other"):
            ovs.plan_bridge(ovs.BridgeSpec("br-job", uplink="eth1"), state(ovs.OvsPort("eth1", "br-other")))

    def test_absent(self) -> None:
        assert ovs.plan_bridge_absent("br-job", state()) == (("del-br", "br-job"),)
        assert ovs.plan_bridge_absent("br-job", EMPTY) == ()


class TestUplink:
    def test_merging_is_off_in_userspace_only(self) -> None:
        uplink = ovs.Uplink("eth1", up=True, merging=("generic-receive-offload",))
        assert ovs.plan_uplink(uplink, "netdev") == (
            ("ethtool", "-K", "eth1", "generic-receive-offload", "off"),
        )
        assert ovs.plan_uplink(uplink, "system") == ()

    def test_is_brought_up(self) -> None:
        assert ovs.plan_uplink(ovs.Uplink("eth1", up=False, merging=()), "netdev") == (
            ("ip", "link", "set", "eth1", "up"),
        )


class TestPort:
    def test_new_port_has_its_tag_from_the_start(self) -> None:
        transaction = ovs.plan_port("br-job", "dj1", 31, {"dockerjob_job": "748"}, state())
        mark = 'external_ids:"dockerjob_job"="748"'
        assert transaction == (
            ("add-port", "br-job", "dj1", "tag=31", "vlan_mode=access", mark),
            ("set", "Interface", "dj1", mark),
        )

    def test_as_wanted(self) -> None:
        have = state(ovs.OvsPort("dj1", "br-job", 31, {"dockerjob_job": "748"}, "access"))
        assert ovs.plan_port("br-job", "dj1", 31, {"dockerjob_job": "748"}, have) == ()

    def test_other_vlan(self) -> None:
        have = state(ovs.OvsPort("dj1", "br-job", 30))
        assert ovs.plan_port("br-job", "dj1", 31, {}, have) == (
            ("set", "Port", "dj1", "tag=31", "vlan_mode=access"),
        )

    def test_trunk_becomes_an_access_port(self) -> None:
        have = state(ovs.OvsPort("dj1", "br-job", 31, vlan_mode="native-untagged"))
        assert ovs.plan_port("br-job", "dj1", 31, {}, have) == (
            ("set", "Port", "dj1", "tag=31", "vlan_mode=access"),
        )

    def test_port_of_another_bridge(self) -> None:
        with pytest.raises(HostError, match="br-other"):
            ovs.plan_port("br-job", "dj1", 31, {}, state(ovs.OvsPort("dj1", "br-other")))

    def test_absent(self) -> None:
        assert ovs.plan_ports_absent(["dj1"]) == (("--if-exists", "del-port", "dj1"),)
        assert ovs.plan_ports_absent([]) == ()


def test_text_cannot_leave_its_value() -> None:
    assert ovs.quote('a" tag=1') == '"a\\" tag=1"'
