# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is planned for a container's port, from what switch, host and container have."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from dockerjob_core import flows, ovs, port
from dockerjob_core.command import CommandError
from dockerjob_core.errors import HostError

ID = "c" * 64
WANT = port.PortSpec("br-job", ID, 4242, "dj1", "eth1", "10.9.0.1/24", 31, 1500)
GUARD = WANT.guard()
OURS = ovs.OvsPort(
    "dj1", "br-job", 31, {"container_id": ID, "container_iface": "eth1", **GUARD.marks}, "access", ("dj1",)
)
INNER = port.InnerLink(GUARD.mac, 1500, up=True, addresses=("10.9.0.1/24",), tx_checksum=False)


def switch(*ports: ovs.OvsPort, datapath: str = "netdev") -> ovs.OvsState:
    bridge = ovs.OvsBridge("br-job", datapath, "secure")
    return ovs.OvsState({"br-job": bridge}, {item.name: item for item in ports})


def whole(**changes: object) -> port.Have:
    """The port as wanted, but for *changes* of the container's end."""
    inner = replace(INNER, **changes)  # type: ignore[arg-type]
    return port.Have(switch(OURS), frozenset({"dj1"}), inner, GUARD.flows("dj1"))


def names(steps: tuple[port.Step, ...]) -> list[str]:
    return [step.name for step in steps]


def text(step: port.Step) -> str:
    assert isinstance(step, port.Run)
    return step.input or " ".join(step.argv)


def test_new_port() -> None:
    create, _, attach, guard, offload, configure = port.plan_attach(WANT, port.Have(switch()))
    assert text(create) == (
        f"link add dj1 mtu 1500 type veth peer name eth1 address {GUARD.mac} mtu 1500 netns 4242\n"
        f"link set dj1 addrgenmode none up\n"
    )
    assert isinstance(attach, port.Commit)
    assert attach.transaction[0][:5] == ("add-port", "br-job", "dj1", "tag=31", "vlan_mode=access")
    assert text(offload) == "nsenter --net=/proc/4242/ns/net ethtool -K eth1 tx off"
    assert text(guard).startswith(f"delete cookie={GUARD.cookie:#x}/-1\ndelete in_port=dj1\nadd ")
    assert text(configure) == (
        "link set lo up\nlink set eth1 addrgenmode none\n"
        "address replace 10.9.0.1/24 dev eth1\nlink set eth1 up\n"
    )


def test_few_processes() -> None:
    steps = port.plan_attach(WANT, port.Have(switch()))
    assert sum(not isinstance(step, port.Write) for step in steps) == 5  # and one before, for the state


def test_the_kernels_datapath_needs_no_offload_switched_off() -> None:
    steps = port.plan_attach(WANT, port.Have(switch(datapath="system")))
    assert names(steps) == [port.CREATE, "attach port", "set flows", "configure interface"]


def test_options_of_the_link() -> None:
    want = replace(WANT, mac="02:00:00:00:00:09", gateway="10.9.0.254", alias="dockerjob.job=748")
    steps = port.plan_attach(want, port.Have(switch()))
    assert "peer name eth1 address 02:00:00:00:00:09 mtu 1500 netns 4242\n" in text(steps[0])
    assert "link set dj1 alias dockerjob.job=748\n" in text(steps[0])
    assert text(steps[-1]).endswith("route replace default via 10.9.0.254 dev eth1\n")


def test_as_wanted() -> None:
    assert port.plan_attach(WANT, whole()) == ()


def test_no_wish_is_no_difference() -> None:
    want = replace(WANT, address=None, vlan=31, mtu=None)
    assert port.plan_attach(want, whole(mtu=9000)) == ()


def test_address_that_is_kept_is_the_one_that_passes() -> None:
    steps = port.plan_attach(replace(WANT, address=None), whole(addresses=("192.0.2.1/24",)))
    assert names(steps) == ["change port", "set flows"]
    assert "nw_src=192.0.2.1" in text(steps[-1])


def test_missing_flows_are_a_change() -> None:
    lost = replace(whole(), flows=frozenset[flows.Flow]())
    assert names(port.plan_attach(WANT, lost)) == ["set flows"]


def test_bridge_that_fails_open_takes_no_port() -> None:
    state = switch()
    loose = replace(state, bridges={"br-job": replace(state.bridges["br-job"], fail_mode=None)})
    with pytest.raises(HostError, match="fail_mode is not secure"):
        port.plan_attach(WANT, port.Have(loose))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"up": False}, "link set eth1 up\n"),
        ({"addresses": ()}, "address replace 10.9.0.1/24 dev eth1\n"),
        (
            {"addresses": ("10.9.0.1/16", "10.9.0.1/24")},
            "address delete 10.9.0.1/16 dev eth1\naddress replace 10.9.0.1/24 dev eth1\n",
        ),
        ({"tx_checksum": True}, "nsenter --net=/proc/4242/ns/net ethtool -K eth1 tx off"),
        ({"mtu": 1400}, "link set eth1 mtu 1500\n"),
        ({"mac": "02:00:00:00:00:09"}, f"link set eth1 address {GUARD.mac}\n"),
    ],
)
def test_only_what_differs(changes: dict[str, object], expected: str) -> None:
    assert text(port.plan_attach(WANT, whole(**changes))[-1]) == expected


def test_other_vlan_is_a_change_in_place() -> None:
    (step,) = port.plan_attach(replace(WANT, vlan=32), whole())
    assert step == port.Commit("change port", (("set", "Port", "dj1", "tag=32", "vlan_mode=access"),))


class TestStale:
    def test_port_whose_pair_is_gone(self) -> None:
        steps = port.plan_attach(WANT, port.Have(switch(OURS)))
        assert names(steps)[:2] == ["remove port", port.CREATE]

    def test_port_in_another_bridge_goes_with_its_flows(self) -> None:
        state = switch(replace(OURS, bridge="br-old"))
        steps = port.plan_attach(WANT, port.Have(state, frozenset({"dj1"})))
        assert names(steps)[:4] == ["remove port", "delete link", "remove flows", port.CREATE]
        assert "del-flows br-old" in text(steps[2])

    def test_port_of_an_earlier_container_of_that_name(self) -> None:
        earlier = replace(OURS, external_ids={**OURS.external_ids, "container_id": "d" * 64})
        steps = port.plan_attach(WANT, port.Have(switch(earlier), frozenset({"dj1"})))
        assert names(steps)[:3] == ["remove port", "delete link", port.CREATE]

    def test_two_ports_for_one_interface(self) -> None:
        second = replace(OURS, name="dj2")
        have = port.Have(switch(OURS, second), frozenset({"dj1", "dj2"}), INNER)
        (remove, delete, *_) = port.plan_attach(WANT, have)
        assert isinstance(remove, port.Commit)
        assert [command[-1] for command in remove.transaction] == ["dj1", "dj2"]
        assert text(delete) == "link delete dj1\nlink delete dj2\n"

    def test_pair_without_a_port(self) -> None:
        steps = port.plan_attach(WANT, port.Have(switch(), frozenset({"dj1"}), INNER))
        assert names(steps)[:2] == ["delete link", port.CREATE]


def test_interface_of_somebody_else() -> None:
    with pytest.raises(HostError, match="already has an interface eth1"):
        port.plan_attach(WANT, port.Have(switch(), inner=INNER))


@pytest.mark.parametrize("field", ["interface", "address", "mac", "gateway", "alias"])
def test_text_cannot_become_a_command(field: str) -> None:
    with pytest.raises(HostError, match="not a name or an address"):
        replace(WANT, **{field: "x\nlink delete eth0"})  # type: ignore[arg-type]


def test_nothing_to_detach() -> None:
    assert port.plan_detach((), ()) == ()


class TestOfContainer:
    def find(self, given: str) -> tuple[str, ...]:
        named = replace(OURS, name=port.link_name("web", "eth1"))
        return port.of_container(switch(named), given, "eth1")

    @pytest.mark.parametrize("given", ["web", ID, ID[:12]])
    def test_by_name_and_id(self, given: str) -> None:
        assert len(self.find(given)) == 1

    @pytest.mark.parametrize("given", ["other", ID[:4], "d" * 64])
    def test_not_by_anything_else(self, given: str) -> None:
        assert self.find(given) == ()


def test_a_link_that_has_gone_meanwhile_is_deleted() -> None:
    """As that of a container's network namespace does by itself, between the look and the deed."""
    port.execute(port.plan_detach((), ("djnosuchlink",)))
    # The kernel deletes its loopback for nobody.
    with pytest.raises(HostError, match=r"Operation not supported|not permitted"):
        port.execute(port.plan_detach((), ("djnosuchlink", "lo")))


@pytest.mark.parametrize(("refusals", "patience", "tries"), [(2, 5.0, 3), (1, 0.0, 1)])
def test_only_a_step_with_patience_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, refusals: int, patience: float, tries: int
) -> None:
    tried: list[tuple[str, ...]] = []

    def run(argv: tuple[str, ...], **_: object) -> None:
        tried.append(argv)
        if len(tried) <= refusals:
            raise CommandError(argv, "failed to open socket (Broken pipe)")

    monkeypatch.setattr(port, "run", run)
    monkeypatch.setattr(port, "PAUSE", 0.01)
    step = port.Run("set flows", ("ovs-ofctl",), patience=patience)
    with contextlib.ExitStack() as stack:
        if tries <= refusals:
            stack.enter_context(pytest.raises(CommandError))
        port.execute([step])
    assert len(tried) == tries
