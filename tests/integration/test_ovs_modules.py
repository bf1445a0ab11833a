# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Open vSwitch modules on a private host with a real switch and real containers."""

from __future__ import annotations

import json
import secrets
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host_fixtures import Host

pytestmark = pytest.mark.integration

IMAGE = "dockerjob-test:latest"


@pytest.fixture
def bridge(host: Host) -> Iterator[str]:
    name = f"br-{secrets.token_hex(3)}"
    try:
        yield name
    finally:
        host.ovs("--if-exists", "del-br", name)


@contextmanager
def container(host: Host, *options: str) -> Iterator[str]:
    """Run a container of busybox without a network; yields its name."""
    name = f"t-{secrets.token_hex(4)}"
    try:
        host.docker("run", "-d", "--name", name, "--network=none", *options, IMAGE, "/bin/sleep", "600")
        yield name
    finally:
        host.docker("rm", "-f", name, check=False)
        host.forget_ports()


def pid_of(host: Host, name: str) -> int:
    return int(host.docker("inspect", "-f", "{{.State.Pid}}", name))


def connect(host: Host, name: str, address: str, vlan: int, **options: Any) -> dict[str, Any]:
    arguments = {"container": name, "bridge": "br-job", "address": address, "vlan": vlan, **options}
    return host.module("ovs_docker_port", arguments)


def talk(host: Host, server: int, client: int, address: str) -> int:
    """Send a megabyte over TCP between two containers; return how many bytes came across."""
    inside = "nsenter --net=/proc/{}/ns/net nc"
    listen = f"timeout 4 {inside.format(server)} -d -l 5000 | wc -c"
    send = f"head -c 1000000 /dev/zero | timeout 3 {inside.format(client)} -N -w 1 {address} 5000"
    script = f"{{ {listen}; }} & sleep 0.2; {send} || true; wait"
    return int(host.run("bash", "-c", script, check=False).stdout)


class TestBridge:
    def test_second_run_changes_nothing(self, host: Host, bridge: str) -> None:
        arguments = {"name": bridge, "external_ids": {"owner": "test"}}
        first = host.module("ovs_bridge", arguments)
        assert first["changed"]
        assert host.ovs("get", "Bridge", bridge, "external_ids:owner", "fail_mode").split() == [
            "test",
            "secure",
        ]
        second = host.module("ovs_bridge", arguments)
        assert not second["changed"]
        assert second["diff"]["before"] == second["diff"]["after"]

    def test_datapath_is_what_the_kernel_has(self, host: Host, bridge: str) -> None:
        result = host.module("ovs_bridge", {"name": bridge})
        expected = "netdev" if host.run("modprobe", "openvswitch", check=False).returncode else "system"
        assert result["bridge"]["datapath_type"] == expected
        assert host.ovs("get", "Bridge", bridge, "datapath_type").strip('"') == expected

    def test_check_mode_shows_and_changes_nothing(self, host: Host, bridge: str) -> None:
        result = host.module("ovs_bridge", {"name": bridge, "uplink": "eth1"}, check_mode=True)
        assert result["changed"]
        assert result["diff"]["before"] == {"link": ["ip link set eth1 up"]}
        assert result["diff"]["after"]["uplink"] == "eth1"
        assert bridge not in host.ovs("list-br").split()

    def test_uplink_is_a_port_and_up(self, host: Host, bridge: str) -> None:
        try:
            assert host.module("ovs_bridge", {"name": bridge, "uplink": "eth1"})["changed"]
            assert host.ovs("list-ports", bridge).split() == ["eth1"]
            (link,) = json.loads(host.run("ip", "-json", "link", "show", "eth1").stdout)
            assert "UP" in link["flags"]
            assert not host.module("ovs_bridge", {"name": bridge, "uplink": "eth1"})["changed"]
            other = host.module("ovs_bridge", {"name": "br-job", "uplink": "eth1"}, fails=True)
            assert other["msg"] == f"eth1 is already a port of bridge {bridge}, not of br-job"
        finally:
            host.run("ip", "link", "set", "eth1", "down")

    def test_missing_uplink_makes_no_bridge(self, host: Host, bridge: str) -> None:
        result = host.module("ovs_bridge", {"name": bridge, "uplink": "nonesuch"}, fails=True)
        assert "nonesuch" in result["msg"]
        assert bridge not in host.ovs("list-br").split()

    def test_absent_twice(self, host: Host, bridge: str) -> None:
        host.module("ovs_bridge", {"name": bridge})
        assert host.module("ovs_bridge", {"name": bridge, "state": "absent"}, check_mode=True)["changed"]
        assert host.module("ovs_bridge", {"name": bridge, "state": "absent"})["changed"]
        assert not host.module("ovs_bridge", {"name": bridge, "state": "absent"})["changed"]

    def test_info(self, host: Host, bridge: str) -> None:
        host.module("ovs_bridge", {"name": bridge, "external_ids": {"owner": "test"}})
        result = host.module("ovs_bridge_info", {"name": bridge})
        assert [item["external_ids"] for item in result["bridges"]] == [{"owner": "test"}]
        assert host.module("ovs_bridge_info", {"name": "nonesuch"})["bridges"] == []


class TestPort:
    def test_add_twice_and_remove_twice(self, host: Host) -> None:
        before = host.holds()
        with container(host) as name:
            first = connect(host, name, "10.9.0.1/24", 11, mtu=1400)
            assert first["changed"]
            again = connect(host, name, "10.9.0.1/24", 11, mtu=1400)
            assert (again["changed"], again["steps"]) == (False, [])
            assert host.ovs("get", "Port", first["port"], "tag", "vlan_mode").split() == ["11", "access"]
            arguments = {"container": name, "state": "absent"}
            assert host.module("ovs_docker_port", arguments, check_mode=True)["changed"]
            assert host.module("ovs_docker_port", arguments)["removed"] == [first["port"]]
            assert not host.module("ovs_docker_port", arguments)["changed"]
            assert host.flows() == before["flows"]
            assert host.in_container(pid_of(host, name), "ip", "link", "show", "eth1", check=False).returncode
        assert host.holds() == before

    def test_check_mode_changes_nothing(self, host: Host) -> None:
        with container(host) as name:
            before = host.holds()
            arguments = {"container": name, "bridge": "br-job", "vlan": 11}
            result = host.module("ovs_docker_port", arguments, check_mode=True)
            assert result["changed"]
            assert result["diff"]["before"] == {}
            assert host.holds() == before

    def test_changes_are_made_in_place(self, host: Host) -> None:
        with container(host) as name:
            first = connect(host, name, "10.9.0.1/24", 11)
            result = connect(host, name, "10.9.0.2/24", 12, mtu=1300, gateway="10.9.0.254")
            assert result["steps"] == ["change port", "set flows", "set MTU", "configure interface"]
            assert result["diff"]["before"]["vlan"] == 11
            assert result["diff"]["after"]["address"] == "10.9.0.2/24"
            assert result["port"] == first["port"]
            assert not connect(host, name, "10.9.0.2/24", 12, mtu=1300, gateway="10.9.0.254")["changed"]
            shown = host.in_container(pid_of(host, name), "ip", "-brief", "address", "show", "eth1").stdout
            assert "10.9.0.2/24" in shown
            assert "10.9.0.1/24" not in shown

    def test_tag_comes_with_the_port(self, host: Host) -> None:
        """Watch the database: no version of the port's row is without its tag."""
        with container(host) as name, self._monitor(host) as rows:
            connect(host, name, "10.9.0.1/24", 13)
        (inserted,) = (row for row in rows if row[0] == "insert")
        assert inserted[1] == 13
        assert all(row[1] == 13 for row in rows if row[0] == "new")

    @staticmethod
    @contextmanager
    def _monitor(host: Host) -> Iterator[list[tuple[str, Any]]]:
        inside = ["nsenter", f"--target={host.pid}", "--mount"]
        watch = ["ovsdb-client", "monitor", "--format=json", "unix:/run/openvswitch/db.sock", "Port", "tag"]
        rows: list[tuple[str, Any]] = []
        with subprocess.Popen([*inside, *watch], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            process.stdout.readline()
            try:
                yield rows
            finally:
                process.terminate()
                for line in process.stdout:
                    rows += [(row[1], row[2]) for row in json.loads(line)["data"]]

    def test_stale_port_of_a_killed_container_goes(self, host: Host) -> None:
        before = host.holds()
        with container(host) as name:
            port = connect(host, name, "10.9.0.1/24", 11)["port"]
            host.docker("kill", name)
            host.docker("rm", name)
            assert port not in host.links()
            assert port in host.ovs("list-ports", "br-job").split()
            result = host.module("ovs_docker_port", {"container": name, "state": "absent"})
            assert result["removed"] == [port]
        assert host.holds() == before

    def test_restarted_container_is_connected_again(self, host: Host) -> None:
        with container(host) as name:
            connect(host, name, "10.9.0.1/24", 11)
            host.docker("restart", "-t", "0", name)
            result = connect(host, name, "10.9.0.1/24", 11)
            assert result["steps"][0] == "remove port"
            assert not connect(host, name, "10.9.0.1/24", 11)["changed"]

    def test_interface_of_somebody_else_is_left_alone(self, host: Host) -> None:
        with container(host) as name:
            host.in_container(pid_of(host, name), "ip", "link", "add", "eth1", "type", "veth")
            before = host.holds()
            arguments = {"container": name, "bridge": "br-job"}
            result = host.module("ovs_docker_port", arguments, fails=True)
            assert "already has an interface eth1" in result["msg"]
            assert host.holds() == before

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [({"bridge": "br-none"}, "br-none"), ({"vlan": 5000}, "5000"), ({"address": "nonsense"}, "nonsense")],
    )
    def test_failure_leaves_nothing(self, host: Host, wrong: dict[str, Any], said: str) -> None:
        """ovs-docker leaves port and pair when a step after the first fails, and says nothing."""
        with container(host) as name:
            before = host.holds()
            arguments = {"container": name, "bridge": "br-job", "address": "10.9.0.1/24", "vlan": 11, **wrong}
            assert said in host.module("ovs_docker_port", arguments, fails=True)["msg"]
            assert host.holds() == before

    def test_no_such_container(self, host: Host) -> None:
        result = host.module("ovs_docker_port", {"container": "nonesuch", "bridge": "br-job"}, fails=True)
        assert result["msg"] == "container nonesuch does not exist, so it cannot be connected"

    def test_tcp_within_a_vlan_and_not_between_two(self, host: Host) -> None:
        with container(host) as one, container(host) as two, container(host) as other:
            connect(host, one, "10.9.0.1/24", 21)
            connect(host, two, "10.9.0.2/24", 21)
            connect(host, other, "10.9.0.3/24", 22)
            pids = {name: pid_of(host, name) for name in (one, two, other)}
            assert talk(host, pids[one], pids[two], "10.9.0.1") == 1_000_000
            assert talk(host, pids[one], pids[other], "10.9.0.1") == 0

    def test_host_is_not_reachable_from_the_container(self, host: Host) -> None:
        """With the userspace datapath the host's own stack gets a copy of each frame."""
        host.run("ip", "address", "add", "10.99.0.1/32", "dev", "lo")
        try:
            with container(host) as name:
                link = connect(host, name, "10.99.0.2/24", 23)["port"]
                pid = pid_of(host, name)
                host.in_container(pid, "ping", "-c1", "-W1", "10.99.0.1", check=False)
                neighbours = host.in_container(pid, "ip", "neighbour", "show", "10.99.0.1").stdout
                assert "lladdr" not in neighbours
                # Who knows the address of the host's end needs no answer to an ARP request.
                (outer,) = json.loads(host.run("ip", "-json", "link", "show", link).stdout)
                known = ("10.99.0.1", "lladdr", outer["address"], "dev", "eth1")
                host.in_container(pid, "ip", "neighbour", "replace", *known)
                listen = "timeout 1 nc -d -u -l 10.99.0.1 6000"
                send = f"nsenter --net=/proc/{pid}/ns/net nc -u -w1 10.99.0.1 6000"
                script = f"{listen} & sleep 0.2; echo hello | {send}; wait"
                assert host.run("bash", "-c", script, check=False).stdout == ""
        finally:
            host.run("ip", "address", "delete", "10.99.0.1/32", "dev", "lo")
