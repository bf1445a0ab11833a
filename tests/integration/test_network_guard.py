# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A hostile container on the real switch: forged frames, hopping VLANs, reaching the host.

A container has no capability, so none of this is in its reach.  The frames are sent by
root from its network namespace, as if it had them all.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import frames
import pytest
from dockerjob_core import names, port
from host_fixtures import IMAGE, Host

pytestmark = pytest.mark.integration

PROGRAM = (sys.executable, str(Path(frames.__file__)))
OWN_VLAN, OTHER_VLAN = 41, 42
FAR = "br-far"
"""A second bridge at the other end of the uplink: what the bridge of another host is."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A container and its port."""

    name: str
    pid: int
    port: str
    bridge: str
    address: str
    vlan: int

    @property
    def mac(self) -> str:
        return names.mac_address(self.port)

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "container": self.name,
            "bridge": self.bridge,
            "address": f"{self.address}/16",
            "vlan": self.vlan,
        }

    def inside(self, host: Host, *argv: str) -> list[str]:
        return host.inside("nsenter", f"--net=/proc/{self.pid}/ns/net", *argv)


class Site:
    """Two bridges joined by an uplink, with containers of two jobs at each."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.attacker = self.add("br-job", "10.7.0.1", OWN_VLAN)
        self.mate = self.add("br-job", "10.7.0.2", OWN_VLAN)
        self.other = self.add("br-job", "10.7.1.1", OTHER_VLAN)
        self.far_mate = self.add(FAR, "10.7.0.3", OWN_VLAN)
        self.far_other = self.add(FAR, "10.7.1.2", OTHER_VLAN)

    def add(self, bridge: str, address: str, vlan: int) -> Node:
        name = f"t-{secrets.token_hex(4)}"
        link = port.link_name(name, "eth1")
        self.host.docker("run", "-d", "--name", name, "--network=none", IMAGE, "/bin/sleep", "600")
        pid = int(self.host.docker("inspect", "-f", "{{.State.Pid}}", name))
        node = Node(name, pid, link, bridge, address, vlan)
        self.host.module("ovs_docker_port", node.arguments)
        return node

    def nodes(self) -> list[Node]:
        return [node for node in vars(self).values() if isinstance(node, Node)]

    def honest(self) -> dict[str, bytes]:
        return frames.honest(self.attacker.mac, self.attacker.address, self.mate.address)

    def forged(self) -> dict[str, bytes]:
        addresses = (self.attacker.mac, self.attacker.address, self.mate.address)
        return frames.forged(*addresses, OWN_VLAN, OTHER_VLAN)

    def arriving(self, sent: Mapping[str, bytes]) -> dict[str, set[tuple[str, int]]]:
        """Send from the attacker; return by place the names and VLANs of the frames that came."""
        places = {key: node.inside for key, node in vars(self).items() if isinstance(node, Node)}
        del places["attacker"]
        watchers = {key: inside(self.host, *PROGRAM, "watch", "2", "eth1") for key, inside in places.items()}
        for link in ("fabric", "br-job", FAR):
            watchers[link] = self.host.inside(*PROGRAM, "watch", "2", link)
        with ExitStack() as stack:
            running = {
                key: stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
                for key, argv in watchers.items()
            }
            for process in running.values():
                assert process.stdout is not None
                assert process.stdout.readline() == "watching\n"
            argv = self.attacker.inside(self.host, *PROGRAM, "send", "eth1")
            subprocess.run(argv, input=frames.as_lines(sent), text=True, check=True)
            shown = {key: process.communicate(timeout=30)[0] for key, process in running.items()}
        return {key: {_name_and_vlan(line) for line in text.splitlines()} for key, text in shown.items()}

    def ping(self, node: Node, address: str) -> bool:
        argv = ("ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", address)
        return self.host.in_container(node.pid, *argv, check=False).returncode == 0


def _name_and_vlan(line: str) -> tuple[str, int]:
    name, vlan = line.split()
    return name, int(vlan)


@pytest.fixture(scope="module")
def site(host: Host) -> Iterator[Site]:
    before = host.holds()
    try:
        host.module("ovs_bridge", {"name": "br-job", "uplink": "eth1"})
        host.module("ovs_bridge", {"name": FAR, "uplink": "fabric"})
        for link in ("br-job", FAR):
            host.run("ip", "link", "set", link, "up")
        made = Site(host)
        yield made
        for node in made.nodes():
            host.module("ovs_docker_port", {"container": node.name, "state": "absent"})
    finally:
        host.run("bash", "-c", "docker ps -aq | xargs --no-run-if-empty docker rm -f")
        host.forget_ports()
        host.ovs("--if-exists", "del-br", FAR, "--", "--if-exists", "del-port", "br-job", "eth1")
        host.run("ip", "link", "set", "br-job", "down")
        host.run("ip", "link", "set", "eth1", "down")
    assert host.module("ovs_bridge", {"name": "br-job"})["changed"], "the uplink's flow was left"
    assert host.holds() == before


@pytest.fixture(autouse=True)
def as_it_was(site: Site) -> Iterator[None]:
    before = site.host.flows(), site.host.flows(FAR)
    yield
    assert (site.host.flows(), site.host.flows(FAR)) == before


def restart_switch(host: Host) -> None:
    """Kill ovs-vswitchd as a crash does, and start it as its service does."""
    pid = host.run("cat", "/run/openvswitch/ovs-vswitchd.pid").stdout.strip()
    host.run("kill", "-KILL", pid)
    host.run("bash", "-c", f"while test -e /proc/{pid}/exe; do sleep 0.05; done")
    start = ("--detach", "--no-chdir", "--pidfile", "--log-file=/dev/null", "-vconsole:off")
    # The end of its output would be that of the daemon.
    subprocess.run(host.inside("ovs-vswitchd", *start), check=True, stdout=subprocess.DEVNULL, timeout=30)
    host.ovs("--timeout=10", "set", "Open_vSwitch", ".", "external_ids:restarted=yes")


class TestForgedFrames:
    def test_only_honest_frames_pass_and_stay_in_their_vlan(self, site: Site) -> None:
        came = site.arriving({**site.honest(), **site.forged()})
        inside = {(name, 0) for name in site.honest()}
        assert came == {
            "mate": inside,
            "far_mate": inside,
            "other": set(),
            "far_other": set(),
            "fabric": {(name, OWN_VLAN) for name in site.honest()},
            "br-job": set(),
            FAR: set(),
        }

    def test_without_the_flows_they_would_pass(self, site: Site) -> None:
        """The test above can fail: the same frames through a bridge that only has NORMAL."""
        host = site.host
        host.run("ovs-ofctl", "del-flows", "br-job")
        host.run("ovs-ofctl", "add-flow", "br-job", "actions=NORMAL")
        host.ovs("clear", "Port", "br-job", "tag", "vlan_mode")
        try:
            came = site.arriving(site.forged())
        finally:
            host.run("ovs-ofctl", "--strict", "del-flows", "br-job", "priority=32768")
            assert host.module("ovs_bridge", {"name": "br-job", "uplink": "eth1"})["changed"]
        passed = {name for name, _ in came["mate"]}
        assert {"ip-of-mate", "mac", "arp-ip", "arp-mac", "ip6-link-local", "rarp", "mpls", "tag-0"} <= passed
        assert ("mac", OWN_VLAN) in came["br-job"]
        assert came["other"] == came["far_other"] == set()

    def test_switch_learns_no_address_from_a_forged_frame(self, site: Site) -> None:
        frame = frames.ethernet(site.mate.mac, 0x0800, frames.udp(site.mate.address, "10.7.0.9", b""))
        assert site.ping(site.attacker, site.mate.address)
        site.arriving({"steal": frame})
        shown = site.host.run("ovs-appctl", "fdb/show", "br-job").stdout.splitlines()
        numbers = {item: site.host.ovs("get", "Interface", item, "ofport") for item in (site.mate.port,)}
        (line,) = (line for line in shown if site.mate.mac in line)
        assert line.split()[0] == numbers[site.mate.port]

    def test_container_has_no_ipv6_address(self, site: Site) -> None:
        shown = site.host.in_container(site.mate.pid, "ip", "-6", "address", "show", "dev", "eth1").stdout
        assert shown == ""

    def test_nodes_of_a_job_reach_each_other_over_the_uplink(self, site: Site) -> None:
        assert site.ping(site.attacker, site.mate.address)
        assert site.ping(site.attacker, site.far_mate.address)
        assert not site.ping(site.attacker, site.other.address)
        assert not site.ping(site.attacker, site.far_other.address)


class TestHost:
    """The host's own addresses, even where it has some in the job's bridge and VLAN."""

    @pytest.fixture
    def addresses(self, site: Site) -> Iterator[list[str]]:
        """Addresses of the bridge's own link and of another one."""
        host = site.host
        try:
            host.run("ip", "address", "add", "10.7.0.200/24", "dev", "br-job")
            host.run("ip", "address", "add", "10.7.0.201/32", "dev", "lo")
            yield ["10.7.0.200", "10.7.0.201"]
        finally:
            host.run("ip", "address", "flush", "dev", "br-job")
            host.run("ip", "address", "delete", "10.7.0.201/32", "dev", "lo")

    def test_does_not_answer(self, site: Site, addresses: list[str]) -> None:
        for address in addresses:
            assert not site.ping(site.attacker, address)
            known = site.host.in_container(site.attacker.pid, "ip", "neighbour", "show", address).stdout
            assert "lladdr" not in known

    def test_gets_no_frame_sent_to_its_hardware_address(self, site: Site, addresses: list[str]) -> None:
        links = json.loads(site.host.run("ip", "-json", "link").stdout)
        hardware = {link["ifname"]: link["address"] for link in links}
        bridge_mac, outer_mac = hardware["br-job"], hardware[site.attacker.port]
        sender = site.attacker
        sent = {
            f"{place}-{number}": frames.ethernet(
                sender.mac, 0x0800, frames.udp(sender.address, address, b"<frame reached>", 6000), target
            )
            for place, target in (("bridge", bridge_mac), ("outer", outer_mac))
            for number, address in enumerate(addresses)
        }
        listen = "import socket as s; u=s.socket(2,2); u.bind(('',6000)); u.settimeout(3); print(u.recv(99))"
        argv = site.host.inside(sys.executable, "-c", listen)
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            came = site.arriving(sent)
            heard = server.communicate(timeout=30)[0]
        assert heard == ""
        assert came["br-job"] == set()

    def test_does_not_answer_over_ipv6(self, site: Site) -> None:
        pid = site.attacker.pid
        switch = "net.ipv6.conf.eth1.disable_ipv6={}".format
        site.host.in_container(pid, "sysctl", "-w", switch(0))
        site.host.in_container(pid, "ip", "address", "add", "fe80::7/64", "dev", "eth1", "nodad")
        site.host.run("sysctl", "-w", "net.ipv6.conf.br-job.disable_ipv6=0")
        site.host.run("ip", "address", "add", "fe80::8/64", "dev", "br-job", "nodad")
        try:
            assert site.host.run("ping", "-n", "-c1", "-W1", "fe80::8%br-job").returncode == 0
            assert not site.ping(site.attacker, "fe80::8%eth1")
            answers = site.host.in_container(pid, "ping", "-n", "-c2", "-W1", "ff02::1%eth1", check=False)
            assert "DUP" not in answers.stdout
            assert set(_senders(answers.stdout)) <= {"fe80::7%eth1"}
        finally:
            site.host.in_container(pid, "sysctl", "-w", switch(1))
            site.host.run("ip", "address", "delete", "fe80::8/64", "dev", "br-job")

    @pytest.mark.usefixtures("addresses")
    def test_does_not_reach_the_container(self, site: Site) -> None:
        ping = ("ping", "-n", "-c1", "-W1")
        assert site.host.run(*ping, site.attacker.address, check=False).returncode
        assert site.host.run(*ping, "-I", site.attacker.port, site.attacker.address, check=False).returncode


def _senders(shown: str) -> Iterator[str]:
    return (line.split()[3].rstrip(":") for line in shown.splitlines() if " bytes from " in line)


class TestLostFlows:
    def test_after_a_crash_nothing_passes_until_they_are_put_back(self, site: Site) -> None:
        host = site.host
        whole = host.flows(), host.flows(FAR)
        restart_switch(host)
        assert host.flows() == host.flows(FAR) == []
        came = site.arriving({**site.honest(), **site.forged()})
        assert not any(came.values())

        bridge = {"name": "br-job", "uplink": "eth1"}
        checked = host.module("ovs_bridge", bridge, check_mode=True)
        assert (checked["changed"], checked["diff"]["before"]["flows"]) == (True, [])
        assert host.flows() == []
        repaired = host.module("ovs_bridge", bridge)
        assert repaired["diff"] == checked["diff"]
        host.module("ovs_bridge", {"name": FAR, "uplink": "fabric"})
        assert (host.flows(), host.flows(FAR)) == whole
        again = host.module("ovs_bridge", bridge)
        assert not again["changed"]
        assert again["diff"]["before"] == again["diff"]["after"]
        came = site.arriving({**site.honest(), **site.forged()})
        assert came["far_mate"] == {(name, 0) for name in site.honest()}
        assert came["far_other"] == set()

    def test_a_ports_module_puts_back_its_own_and_the_uplinks(self, site: Site) -> None:
        host = site.host
        host.run("ovs-ofctl", "del-flows", "br-job")
        checked = host.module("ovs_docker_port", site.attacker.arguments, check_mode=True)
        assert (checked["changed"], checked["steps"]) == (True, ["set flows"])
        assert checked["diff"]["before"]["flows"] == []
        assert host.flows() == []
        for node in (site.attacker, site.mate, site.other):
            assert host.module("ovs_docker_port", node.arguments)["changed"]
            assert not host.module("ovs_docker_port", node.arguments)["changed"]
        assert not host.module("ovs_bridge", {"name": "br-job", "uplink": "eth1"})["changed"]

    def test_a_flow_too_much_is_a_change(self, site: Site) -> None:
        """Such as one that an earlier port had that had the same number."""
        host = site.host
        number = host.ovs("get", "Interface", site.attacker.port, "ofport")
        flow = f"cookie={names.FLOW_COOKIES:#x},priority=300,in_port={number},actions=NORMAL"
        host.run("ovs-ofctl", "add-flow", "br-job", flow)
        assert host.module("ovs_docker_port", site.attacker.arguments)["steps"] == ["set flows"]
        assert not host.module("ovs_docker_port", site.attacker.arguments)["changed"]

    def test_flows_that_ovs_ctl_saves_are_right_afterwards(self, site: Site) -> None:
        """The steps of ``ovs-ctl restart``, as an upgrade of the package does; port numbers stay as well."""
        host = site.host
        before = host.flows()
        waits = "other_config:flow-restore-wait"
        saved = host.run("/usr/share/openvswitch/scripts/ovs-save", "save-flows", "br-job", FAR).stdout
        host.ovs("set", "Open_vSwitch", ".", f"{waits}=true")
        restart_switch(host)
        host.run("sh", "-c", saved)
        host.ovs("remove", "Open_vSwitch", ".", "other_config", "flow-restore-wait")
        assert host.flows() == before
        assert not host.module("ovs_bridge", {"name": "br-job", "uplink": "eth1"})["changed"]
        assert site.ping(site.attacker, site.far_mate.address)


class TestNewPort:
    def test_number_of_an_earlier_port_brings_no_rights(self, site: Site) -> None:
        """A trusted port that is gone leaves its flow, and its number is given out again."""
        host = site.host
        cookie = f"cookie={names.FLOW_COOKIES:#x}"
        stale = "".join(f"{cookie},in_port={number},actions=NORMAL\n" for number in range(300))
        host.run("ovs-ofctl", "add-flows", "br-job", "-", input=stale)
        node = site.add("br-job", "10.7.0.9", OWN_VLAN)
        try:
            about = [line for line in host.flows() if f"in_port={node.port}" in line]
            assert len(about) == 3
            assert all(f"{names.flow_cookie(node.port):#x}" in line for line in about)
        finally:
            host.module("ovs_docker_port", {"container": node.name, "state": "absent"})
            host.docker("rm", "-f", node.name)
            host.run("ovs-ofctl", "--strict", "del-flows", "br-job", f"{cookie}/-1,priority=32768")
            for number in range(300):
                line = f"{cookie}/-1,in_port={number}"
                host.run("ovs-ofctl", "--strict", "del-flows", "br-job", line)
            host.module("ovs_bridge", {"name": "br-job", "uplink": "eth1"})

    def test_flows_left_without_port_and_container_go_by_mark(self, site: Site) -> None:
        host = site.host
        node = site.add("br-job", "10.7.0.9", OWN_VLAN)
        host.ovs("del-port", node.port)
        host.docker("rm", "-f", node.name)
        gone = {"container": node.name, "state": "absent"}
        checked = host.module("ovs_docker_port", gone, check_mode=True)
        assert checked["changed"]
        assert len(checked["diff"]["before"]["flows"]["br-job"]) == 3
        assert host.module("ovs_docker_port", gone)["changed"]
        assert not host.module("ovs_docker_port", gone)["changed"]

    def test_bridge_that_would_fail_open_is_refused(self, site: Site) -> None:
        host = site.host
        host.ovs("set", "Bridge", FAR, "fail_mode=standalone")
        try:
            before = host.holds()
            result = host.module(
                "ovs_docker_port", {**site.far_mate.arguments, "container": site.mate.name}, fails=True
            )
            assert "fail_mode is not secure" in result["msg"]
            assert host.holds() == before
        finally:
            assert host.module("ovs_bridge", {"name": FAR, "uplink": "fabric"})["changed"]

    def test_site_port_keeps_its_traffic(self, site: Site) -> None:
        """A port that is no container's passes what it sends, once the module has seen it."""
        host = site.host
        host.ovs("add-port", "br-job", "extra", "--", "set", "Interface", "extra", "type=internal")
        try:
            assert host.module("ovs_bridge", {"name": "br-job", "uplink": "eth1"})["changed"]
            assert any("in_port=extra actions=NORMAL" in line for line in host.flows())
        finally:
            host.ovs("del-port", "br-job", "extra")
            assert host.module("ovs_bridge", {"name": "br-job", "uplink": "eth1"})["changed"]
