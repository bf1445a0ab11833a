# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lab is: its hosts, and every name and path that belongs to it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

STATE_ROOT = Path("/var/lib/dockerjob-lab")
IMAGES = Path(os.environ.get("DOCKERJOB_LAB_IMAGES", str(STATE_ROOT / "images")))
"""Where ``images/build.py`` keeps the images."""

LOCK_ROOT = Path("/run")
NETNS_ROOT = Path("/run/netns")
REPOSITORY = Path(__file__).resolve().parents[2]
NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
HEAD = "head"
DEFAULT_COMPUTE = 3
MAX_COMPUTE = 200
"""Each lab has a /24 of its own for management; see :func:`LabHost.address`."""


class LabError(Exception):
    """Something in the lab is wrong; the message says what, where and what to do."""


@dataclass(frozen=True)
class LabHost:
    """One host of a lab: a set of namespaces with an sshd."""

    lab: str
    name: str
    index: int
    state: Path

    @property
    def address(self) -> str:
        """Management address; the same in every lab, since no lab sees another."""
        return f"10.77.0.{self.index + 1}"

    @property
    def netns(self) -> str:
        """Name of the host's network namespace in ``/run/netns``."""
        return f"dj-{self.lab}-{self.name}"

    @property
    def cgroup(self) -> str:
        """Path, in every cgroup hierarchy, below which all processes of the host are."""
        return f"/dockerjob-{self.lab}/{self.name}"

    @property
    def system_cgroup(self) -> str:
        """The one below :attr:`cgroup` for everything but containers and batch jobs."""
        return f"{self.cgroup}/system"

    @property
    def upper(self) -> Path:
        """Upper directory of the root overlay: what differs from the machine's root."""
        return self.state / "upper"

    @property
    def ready_file(self) -> Path:
        """File with the pid of the host's init, empty until its sshd listens."""
        return self.state / "init.pid"

    @property
    def console(self) -> Path:
        """Output of the host's start."""
        return self.state / "console.log"


@dataclass(frozen=True)
class Lab:
    """A lab by name; several can be up at the same time."""

    name: str
    compute: int

    @cached_property
    def hosts(self) -> tuple[LabHost, ...]:
        """The head, then the compute hosts."""
        return tuple(self.host(index) for index in range(self.compute + 1))

    def host(self, index: int) -> LabHost:
        """Host *index*; 0 is the head."""
        name = f"node{index}" if index else HEAD
        return LabHost(self.name, name, index, self.state / name)

    def host_named(self, name: str) -> LabHost:
        """The host called *name*, or :class:`LabError`."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(
            f"lab {self.name!r} has no host {name!r}; it has {', '.join(h.name for h in self.hosts)}"
        )

    @property
    def state(self) -> Path:
        """Directory with everything that the lab keeps on disk."""
        return STATE_ROOT / self.name

    @property
    def staging(self) -> Path:
        """What becomes :attr:`state` once it has a record, so that there is none without."""
        return STATE_ROOT / f".{self.name}.new"

    @property
    def record(self) -> Path:
        """File that marks :attr:`state` as a lab's and holds its size."""
        return self.state / "lab.json"

    @property
    def lock(self) -> Path:
        """File locked while ``up`` or ``down`` runs."""
        return LOCK_ROOT / f"dockerjob-lab.{self.name}.lock"

    @property
    def switch(self) -> str:
        """Network namespace with the lab's bridges."""
        return f"dj-{self.name}-sw"

    @property
    def netns_prefix(self) -> str:
        """What the names of all network namespaces of this lab begin with."""
        return f"dj-{self.name}-"

    @property
    def cgroup(self) -> str:
        """Parent of the hosts' cgroups."""
        return f"/dockerjob-{self.name}"

    @property
    def key(self) -> Path:
        """Private ssh key that opens root's account on every host."""
        return self.state / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """Host keys of the lab's hosts."""
        return self.state / "known_hosts"

    @property
    def output(self) -> Path:
        """Directory in the checkout for what people use: the inventory."""
        return REPOSITORY / ".lab" / self.name

    @property
    def inventory(self) -> Path:
        """The Ansible inventory of the lab."""
        return self.output / "inventory.yml"

    @property
    def mark(self) -> Path:
        """File in the checkout that tells whether :attr:`state` is its own; see :class:`Record`."""
        return self.output / "mark"


@dataclass(frozen=True)
class Record:
    """What a lab's state says of itself.

    The certificates of what runs in a lab are in the checkout, so the state is of no use to
    another one: not to a new clone, nor to a checkout whose ``.lab`` was deleted.
    """

    name: str
    compute: int
    mark: str = ""
    checkout: str = ""

    def belongs_to(self, checkout: Path) -> bool:
        """Whether *checkout* has made the lab, and has what goes with it still."""
        mark = checkout / ".lab" / self.name / "mark"
        return bool(self.mark) and mark.is_file() and mark.read_text() == self.mark

    def as_json(self) -> str:
        """Text of the record."""
        return json.dumps(asdict(self)) + "\n"


def check_name(name: str) -> str:
    """Return *name* if a lab can be called so, else raise :class:`LabError`."""
    if not NAME.fullmatch(name):
        raise LabError(
            f"{name!r} is no name for a lab: use a-z, 0-9 and -, beginning with a letter, at most 20"
        )
    return name


def recorded(name: str) -> Record | None:
    """The record of an existing lab, or None if there is no such lab."""
    file = Lab(name, 0).record
    try:
        return Record(**json.loads(file.read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (TypeError, ValueError) as error:
        raise LabError(f"{file} is damaged ({error}); run: lab.py --name {name} down") from error


def existing(name: str) -> Lab:
    """The lab *name* as it was set up, or :class:`LabError` if it is not there."""
    record = recorded(check_name(name))
    if record is None:
        raise LabError(f"there is no lab {name!r}; run: lab.py --name {name} up")
    return Lab(name, record.compute)
