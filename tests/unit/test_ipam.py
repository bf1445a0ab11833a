# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The choice of a free network, without etcd."""

from __future__ import annotations

import netaddr
import pytest
from dockerjob_core.errors import ConfigError, NoFreeNetworkError
from dockerjob_core.ipam import JobNetwork, NetworkPool, Taken, choose
from hypothesis import given
from hypothesis import strategies as st

POOL = NetworkPool("10.128.0.0/22", 24, "100-103")


def test_a_pool_is_used_up_to_the_last_network() -> None:
    taken = Taken()
    for seed in range(4):
        network = choose(POOL, taken, str(seed))
        assert network.subnet not in taken.subnets
        assert network.vlan not in taken.vlans
        taken = Taken(taken.subnets | {network.subnet}, taken.vlans | {network.vlan})
    assert taken.subnets == {f"10.128.{third}.0/24" for third in range(4)}
    assert taken.vlans == {100, 101, 102, 103}
    with pytest.raises(
        NoFreeNetworkError, match=r"all /24 subnets in 10\.128\.0\.0/22 are reserved by 4 jobs"
    ):
        choose(POOL, taken, "0")


def test_the_message_says_that_the_vlans_ran_out() -> None:
    with pytest.raises(NoFreeNetworkError, match="all VLANs in 100-103 are reserved"):
        choose(POOL, Taken(vlans=frozenset(range(100, 104))), "0")


def test_jobs_at_the_same_time_choose_apart() -> None:
    pool = NetworkPool("10.128.0.0/12", 24, "100-3999")
    chosen = [choose(pool, Taken(), str(job)) for job in range(50)]
    assert len({network.subnet for network in chosen}) > 45
    assert len({network.vlan for network in chosen}) > 45


@given(
    st.lists(st.tuples(st.integers(0, 1023), st.sampled_from([22, 24, 26, 28])), max_size=20),
    st.text(),
)
def test_the_choice_never_overlaps_what_is_reserved(taken: list[tuple[int, int]], seed: str) -> None:
    """Also not when the site changed the size of its subnets while jobs were running."""
    pool = NetworkPool("10.128.0.0/18", 24, "100-103")
    blocks = {str(netaddr.IPNetwork(f"10.128.{i // 16}.{i % 16 * 16}/{length}").cidr) for i, length in taken}
    try:
        network = netaddr.IPNetwork(choose(pool, Taken(subnets=frozenset(blocks)), seed).subnet)
    except NoFreeNetworkError:
        assert all(
            any(sub in netaddr.IPSet([b]) or netaddr.IPNetwork(b) in sub for b in blocks)
            for sub in netaddr.IPNetwork(pool.supernet).subnet(24)
        )
        return
    assert network.prefixlen == 24
    assert network == network.cidr
    assert network in netaddr.IPNetwork(pool.supernet)
    assert netaddr.IPSet(blocks).isdisjoint(netaddr.IPSet([network]))


def test_addresses_of_the_nodes() -> None:
    network = JobNetwork("10.128.7.0/29", 100)
    assert network.prefix_length == 29
    assert [network.address(index) for index in (0, 5)] == ["10.128.7.1", "10.128.7.6"]
    for index in (-1, 6):
        with pytest.raises(ConfigError, match="no address for node"):
            network.address(index)
    assert NetworkPool("10.0.0.0/8", 29, "1").nodes == 6


@pytest.mark.parametrize(
    ("supernet", "length", "vlans", "message"),
    [
        ("10.128.0.0/33", 24, "1", "is no network"),
        ("ten", 24, "1", "is no network"),
        ("10.128.0.1/16", 24, "1", "is no IPv4 network address"),
        ("fd00::/48", 64, "1", "is no IPv4 network address"),
        ("10.128.0.0/16", 8, "1", "must be 16 to 30"),
        ("10.128.0.0/16", 31, "1", "must be 16 to 30"),
        ("10.128.0.0/16", 24, "", "no VLANs"),
        ("10.128.0.0/16", 24, "0-5", "no range within 1 to 4094"),
        ("10.128.0.0/16", 24, "9-5", "no range within"),
        ("10.128.0.0/16", 24, "5-4095", "no range within"),
        ("10.128.0.0/16", 24, "all", "neither a number nor first-last"),
        ("10.128.0.0/16", 24, "1-2-3", "neither a number nor first-last"),
        ("10.128.0.0/16", 24, "-5", "neither a number nor first-last"),
    ],
)
def test_a_pool_that_makes_no_sense(supernet: str, length: int, vlans: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NetworkPool(supernet, length, vlans)


def test_ranges_of_vlans() -> None:
    assert NetworkPool("10.0.0.0/8", 24, "100-102, 7,").tags == {7, 100, 101, 102}
