# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which subnet and VLAN a job gets, reserved in etcd so that no two jobs ever share one.

A reservation is three keys made in one transaction: the subnet's, the VLAN's and the
job's.  It is *not* under the job's lease: a job that crashed may still have ports on its
network, so the reservation stays until :func:`release` is called, which is when every
host of the job is known to be clean.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import netaddr

from . import names
from .errors import ConfigError, KvsError, NoFreeNetworkError
from .kvs import KeyValue, Kvs

ATTEMPTS = 20
"""Tries of one reservation; each loses only to another job that just took the same subnet or VLAN."""


VLANS = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


@dataclass(frozen=True)
class JobNetwork:
    """The network of one job: an IPv4 subnet (CIDR) and a VLAN tag."""

    subnet: str
    vlan: int

    @property
    def prefix_length(self) -> int:
        """Length of the subnet's prefix, as an interface address needs it."""
        return int(self.subnet.partition("/")[2])

    def address(self, index: int) -> str:
        """Address of node *index*: the first address of the subnet is node 0's.

        Raises:
            ConfigError: The subnet has no address for so many nodes.
        """
        network = netaddr.IPNetwork(self.subnet)
        if not 0 <= index < network.size - 2:
            raise ConfigError(
                f"subnet {self.subnet} has no address for node {index}: jobs of this size need a shorter prefix"
            )
        return str(network[index + 1])


@dataclass(frozen=True)
class NetworkPool:
    """The subnets and VLANs a site gives to jobs.

    Args:
        supernet: Network that is cut into the jobs' subnets (CIDR).
        prefix_length: Prefix length of one job's subnet.
        vlans: VLAN tags as ranges: ``100-3999,4010``.

    Raises:
        ConfigError: One of them makes no sense.
    """

    supernet: str
    prefix_length: int
    vlans: str

    def __post_init__(self) -> None:
        """Refuse a pool that makes no sense, with the value in the message."""
        try:
            network = netaddr.IPNetwork(self.supernet)
        except (netaddr.AddrFormatError, ValueError) as error:
            raise ConfigError(f"network pool: supernet {self.supernet!r} is no network: {error}") from error
        if network.version != 4 or network.cidr != network or network.ip != network.network:
            raise ConfigError(f"network pool: supernet {self.supernet!r} is no IPv4 network address")
        if not network.prefixlen <= self.prefix_length <= 30:
            raise ConfigError(
                f"network pool: prefix length {self.prefix_length} must be {network.prefixlen} to 30"
            )
        if not self.tags:
            raise ConfigError("network pool: no VLANs")

    @cached_property
    def tags(self) -> frozenset[int]:
        """All VLAN tags of the pool."""
        tags: set[int] = set()
        for part in filter(None, self.vlans.replace(" ", "").split(",")):
            match = VLANS.fullmatch(part)
            if not match:
                raise ConfigError(f"network pool: VLANs {part!r} are neither a number nor first-last")
            span = range(int(match[1]), int(match[2] or match[1]) + 1)
            if not span or span[0] < 1 or span[-1] > 4094:
                raise ConfigError(f"network pool: VLANs {part!r} are no range within 1 to 4094")
            tags.update(span)
        return frozenset(tags)

    @property
    def nodes(self) -> int:
        """How many nodes a job's subnet has addresses for."""
        return int(2 ** (32 - self.prefix_length)) - 2


@dataclass(frozen=True)
class Taken:
    """The subnets and VLANs that are reserved."""

    subnets: frozenset[str] = frozenset()
    vlans: frozenset[int] = frozenset()


def choose(pool: NetworkPool, taken: Taken, seed: str) -> JobNetwork:
    """Choose a free network, by *seed*: the lowest free one would be everybody's choice.

    Reserved subnets of another size (from before the pool was changed) are avoided whole.

    Raises:
        NoFreeNetworkError: All subnets or all VLANs are reserved.
    """
    chance = random.Random(seed)  # noqa: S311 - to spread the choices, not to hide them
    reserved = netaddr.IPSet(taken.subnets)
    space = (netaddr.IPSet([pool.supernet]) - reserved).iter_cidrs()
    free = [cidr for cidr in space if cidr.prefixlen <= pool.prefix_length]
    counts = [2 ** (pool.prefix_length - cidr.prefixlen) for cidr in free]
    vlans = sorted(pool.tags - taken.vlans)
    if not free or not vlans:
        lacking = (
            f"/{pool.prefix_length} subnets in {pool.supernet}" if not free else f"VLANs in {pool.vlans}"
        )
        raise NoFreeNetworkError(
            f"no free job network: all {lacking} are reserved by {len(taken.vlans)} jobs; "
            "wait for one to end, or release what dead jobs left"
        )
    (block,) = chance.choices(free, counts)
    first = netaddr.IPNetwork(f"{block.network}/{pool.prefix_length}")
    subnet = first.next(chance.randrange(2 ** (pool.prefix_length - block.prefixlen)))
    return JobNetwork(str(subnet), chance.choice(vlans))


def reserve(kvs: Kvs, pool: NetworkPool, job_id: str) -> JobNetwork:
    """Reserve a network for the job; a job that has one gets the same one again.

    Normally one read and one transaction.  The first read lists the jobs' records, which
    name subnet and VLAN both; after a lost race every reservation key is looked at.

    Raises:
        NoFreeNetworkError: The pool is exhausted.
        KvsError: etcd failed, or :data:`ATTEMPTS` races were lost.
    """
    prefix = f"{names.NETWORKS}/job/"
    for attempt in range(ATTEMPTS):
        items = kvs.get_prefix(prefix).items
        own = next((item for item in items if item.key == names.network_key(job_id)), None)
        if own:
            return _record(own.value)
        network = choose(pool, _taken(items), f"{job_id}/{attempt}")
        if kvs.create_if_absent(_keys(job_id, network)):
            return network
        prefix = f"{names.NETWORKS}/"
    raise KvsError(f"job {job_id}: {ATTEMPTS} networks in a row were taken by others; try again")


def release(kvs: Kvs, job_id: str, also: Mapping[str, bytes] | None = None) -> JobNetwork | None:
    """Give the job's network back; return it, or None if there is nothing to give.

    Call it only when no host has a port or a container of the job any more.  Keys that
    do not carry this job's mark are left alone.

    Args:
        kvs: Connection that may write reservations.
        job_id: The job.
        also: Keys that go in the same transaction, with their values; if one of them has
            changed, nothing is done.
    """
    also = also or {}
    own = kvs.get(names.network_key(job_id))
    network = None if own is None else _record(own.value)
    mine = {**_keys(job_id, network), own.key: own.value} if own and network else {}
    while mine or also:
        keys = {**mine, **also}
        if kvs.transact(keys, {}, keys):
            return network
        if _still(kvs, also) != also:
            return None
        mine = _still(kvs, mine)
    return network


def _still(kvs: Kvs, items: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return those of *items* that etcd holds as they are."""
    return {key: value for key, value in items.items() if (now := kvs.get(key)) and now.value == value}


def find(kvs: Kvs, job_id: str) -> JobNetwork | None:
    """Return the network reserved for the job; None if it has none."""
    own = kvs.get(names.network_key(job_id))
    return _record(own.value) if own else None


def list_networks(kvs: Kvs) -> dict[str, JobNetwork]:
    """Return the reserved networks by job id."""
    prefix = f"{names.NETWORKS}/job/"
    return {item.key.removeprefix(prefix): _record(item.value) for item in kvs.get_prefix(prefix).items}


def _keys(job_id: str, network: JobNetwork) -> dict[str, bytes]:
    """Return the three keys of a reservation; subnet and VLAN carry the job id as their mark."""
    record = {"subnet": network.subnet, "vlan": network.vlan}
    return {
        names.network_key(job_id): json.dumps(record).encode(),
        names.subnet_key(network.subnet): job_id.encode(),
        names.vlan_key(network.vlan): job_id.encode(),
    }


def _record(value: bytes) -> JobNetwork:
    try:
        record = json.loads(value)
        return JobNetwork(str(record["subnet"]), int(record["vlan"]))
    except (ValueError, KeyError, TypeError) as error:
        raise KvsError(f"etcd holds no network reservation but {value[:80]!r}") from error


def _taken(items: Iterable[KeyValue]) -> Taken:
    """Read what is reserved from keys of any of the three kinds."""
    subnets: set[str] = set()
    vlans: set[int] = set()
    for item in items:
        kind, _, leaf = item.key.removeprefix(f"{names.NETWORKS}/").partition("/")
        if kind == "job":
            network = _record(item.value)
            subnets.add(network.subnet)
            vlans.add(network.vlan)
        elif kind == "subnet":
            subnets.add(leaf.replace("_", "/"))
        elif kind == "vlan":
            vlans.add(int(leaf))
    return Taken(frozenset(subnets), frozenset(vlans))
