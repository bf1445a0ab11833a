# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's own interface and the quick tests of a peer's, without starting a process."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time

SIOCGIFADDR = 0x8915
"""Get an interface's IPv4 address (netdevice(7))."""

ECHO_REQUEST, ECHO_REPLY = 8, 0


def interface_address(interface: str) -> str | None:
    """Return the IPv4 address of *interface*, or None while it has none or is missing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def wait_for_address(interface: str, address: str, timeout: float) -> bool:
    """Wait until *interface* has *address*; say whether it came in time."""
    deadline = time.monotonic() + timeout
    while interface_address(interface) != address:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def ping(address: str, timeout: float) -> bool | None:
    """Send one ICMP echo over an unprivileged socket (icmp(7)) and wait for its reply.

    Returns:
        Whether a reply came; None if the kernel allows this group no such socket
        (``net.ipv4.ping_group_range``, which Docker opens in a container's own network).
    """
    try:
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    except PermissionError:
        return None
    with probe:
        token = os.urandom(8)
        probe.settimeout(timeout)
        try:
            # The kernel fills in the identifier and the checksum of such a socket's packets.
            probe.sendto(struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, 0, 1) + token, (address, 0))
            reply = probe.recv(64)
        except OSError:
            return False
    return reply[:1] == bytes([ECHO_REPLY]) and reply[8:16] == token
