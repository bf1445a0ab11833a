# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Device nodes of this host that a job's container gets.

What is wanted comes from the site's policy, what there is says the host.  Docker itself would take any
path, follow links and take disks too; so each node is looked at here, and Docker is told these nodes only.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SYSFS = "/sys/dev/char"

HOSTS_DEVICES = re.compile(
    r"(mem|kmem|port|kmsg|kvm|fuse|cuse|loop|sd[a-z]|hd[a-z]|vd[a-z]|xvd[a-z]|sr[0-9]|nvme|dm-|md[0-9]|sg[0-9]|bsg"
    r"|mmcblk|mtd|ubi|nbd|rbd|ram[0-9]|zram|btrfs-control|autofs|snapshot|tty|vcs|ptmx|hidraw|uinput|uhid"
    r"|vhost|vsock|vfio|ipmi|watchdog|nvram|rtc|tpm|mei[0-9]|gpiochip|i2c-|spidev|uio[0-9]|microcode|userfaultfd)"
    r"|(console|mapper|disk|block|bus|input|net|cpu|raw|shm|pts|mqueue|hugepages)(/|$)"
)
"""Devices below /dev with which a process has the host's memory, disks, terminals, input or network."""

Permit = Literal["always", "batch"]


@dataclass(frozen=True)
class DeviceRule:
    """Devices that a container gets.

    Attributes:
        path: a device, a directory of devices, or a pattern of devices (fnmatch(3), by component).
        required: whether a host that has none is an error.
        permit: ``batch`` if only those that the batch system permits to the job.
    """

    path: str
    required: bool = True
    permit: Permit = "always"


@dataclass(frozen=True)
class DeviceNode:
    """A character device; *name* is the kernel's own for its number, relative to /dev, or ``None``."""

    path: str
    major: int
    minor: int
    name: str | None = None


@dataclass(frozen=True)
class Permitted:
    """Character devices that a cgroup may read and write; a number that is ``None`` is any."""

    numbers: frozenset[tuple[int | None, int | None]]

    @classmethod
    def of(cls, text: str) -> Permitted:
        """Read ``devices.list`` (Documentation/admin-guide/cgroup-v1/devices.rst), such as ``c 195:* rwm``."""
        found = re.findall(r"^([ac]) ([0-9]+|\*):([0-9]+|\*) ([rwm]+)$", text, re.MULTILINE)
        return cls(
            frozenset(
                (_number(major), _number(minor))
                for _, major, minor, access in found
                if {"r", "w"} <= set(access)
            )
        )

    def __contains__(self, node: DeviceNode) -> bool:
        """Tell whether *node* is one of them."""
        return any(
            major in (None, node.major) and minor in (None, node.minor) for major, minor in self.numbers
        )


def _number(text: str) -> int | None:
    return None if text == "*" else int(text)


def check_path(path: str) -> str:
    """Return *path* unchanged.

    Raises:
        ValueError: it is no path below /dev, or that of a device with which a host is open.
    """
    if os.path.normpath(path) != path or not path.startswith("/dev/"):
        raise ValueError(f"{path} is no path below /dev")
    if HOSTS_DEVICES.match(path.removeprefix("/dev/")):
        raise ValueError(f"with {path} a process reads and changes the host itself")
    return path


def resolve(rules: Sequence[DeviceRule], permitted: Permitted | None) -> tuple[str, ...]:
    """Return the paths of the devices that *rules* give on this host.

    Args:
        rules: the site's, for the job's application.
        permitted: what the batch system permits to the job here; ``None`` if it doesn't say.

    Raises:
        HostError: one is missing, is no character device, or opens the host.
    """
    return choose(rules, {rule.path: look(rule.path) for rule in rules}, permitted)


def choose(
    rules: Sequence[DeviceRule], there: Mapping[str, Sequence[DeviceNode]], permitted: Permitted | None
) -> tuple[str, ...]:
    """Do what :func:`resolve` does, of the nodes that are *there* for each rule's path."""
    chosen: list[str] = []
    for rule in rules:
        found = [_harmless(node) for node in there[rule.path]]
        if rule.required and not found:
            raise HostError(f"there is no device {rule.path} on this host")
        if rule.permit == "batch":
            if rule.required and permitted is None:
                raise HostError(
                    f"device {rule.path} is for jobs that the batch system permits it to, and on this host "
                    "the batch system has no devices cgroup (v1) for the job that would say so"
                )
            found = [node for node in found if permitted is not None and node in permitted]
        chosen += [node.path for node in found]
    return tuple(dict.fromkeys(chosen))


def _harmless(node: DeviceNode) -> DeviceNode:
    try:
        check_path(node.path)
        check_path(f"/dev/{node.name}" if node.name else node.path)
    except ValueError as error:
        raise HostError(f"device {node.path} is refused: {error}") from error
    return node


def look(path: str) -> tuple[DeviceNode, ...]:
    """Find the character devices that *path* means on this host; what else a directory or pattern has is left out.

    Raises:
        HostError: *path* is a link, leads through one, or is neither a device nor a directory.
    """
    if glob.has_magic(path):
        found = (_node(match) for match in sorted(glob.glob(path)))
    elif not os.path.lexists(path):
        return ()
    elif os.path.realpath(path) != path:
        raise HostError(
            f"device {path} is refused: it is or leads through a link, to {os.path.realpath(path)}"
        )
    elif os.path.isdir(path):
        found = (_node(below) for below in _below(path))
    elif node := _node(path):
        return (node,)
    else:
        raise HostError(f"device {path} is refused: it is no character device")
    return tuple(node for node in found if node is not None)


def _below(directory: str) -> Iterator[str]:
    # It follows no links to directories.
    for here, directories, files in os.walk(directory):
        directories.sort()
        yield from (os.path.join(here, name) for name in sorted(files))


def _node(path: str) -> DeviceNode | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISCHR(found.st_mode) or os.path.realpath(path) != path:
        return None
    major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    return DeviceNode(path, major, minor, _kernel_name(major, minor))


def _kernel_name(major: int, minor: int) -> str | None:
    """Return DEVNAME of sysfs; drivers that make their nodes themselves, such as NVIDIA's, have none."""
    try:
        with open(f"{SYSFS}/{major}:{minor}/uevent", encoding="utf-8") as uevent:
            named = re.search(r"^DEVNAME=(.+)$", uevent.read(), re.MULTILINE)
    except OSError:
        return None
    return named[1] if named else None
