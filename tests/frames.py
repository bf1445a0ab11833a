# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send frames of any kind from an interface, and see which of them arrive at another.

Builds what a hostile container could send if it were root, and is the program that sends
and receives: ``python3 frames.py send INTERFACE`` takes frames as ``NAME HEX`` lines, and
``python3 frames.py watch SECONDS INTERFACE`` prints the name and the VLAN of each such
frame that comes in.  It needs nothing but Python, so it runs in any network namespace.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
import sys
import time
from collections.abc import Mapping

EVERYONE = "ff:ff:ff:ff:ff:ff"
OTHER_MAC = "02:aa:aa:aa:aa:aa"
MARK = re.compile(rb"<frame ([\w.-]+)>")
ETH_P_ALL, SOL_PACKET, PACKET_AUXDATA, OUTGOING, VLAN_VALID = 3, 263, 8, 4, 1 << 4


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(source: str, kind: int, body: bytes, target: str = EVERYONE) -> bytes:
    return mac(target) + mac(source) + struct.pack("!H", kind) + body


def tagged(frame: bytes, *tags: tuple[int, int]) -> bytes:
    """Put VLAN headers, each of (ethertype, VLAN), outermost first, into *frame*."""
    return frame[:12] + b"".join(struct.pack("!HH", *tag) for tag in tags) + frame[12:]


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def udp(source: str, target: str, payload: bytes, port: int = 4000) -> bytes:
    segment = struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload
    addresses = ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address(target).packed
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(segment), 1, 0, 64, 17)
    return head + struct.pack("!H", checksum(head + b"\0\0" + addresses)) + addresses + segment


def udp6(source: str, target: str, payload: bytes) -> bytes:
    segment = struct.pack("!HHHH", 4000, 4000, 8 + len(payload), 0xFFFF) + payload
    addresses = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(target).packed
    return struct.pack("!IHBB", 6 << 28, len(segment), 17, 64) + addresses + segment


def arp(sender: str, address: str, target: str, payload: bytes, operation: int = 1) -> bytes:
    """An ARP packet; the payload stands where the padding is."""
    packed = (ipaddress.IPv4Address(text).packed for text in (address, target))
    here, there = packed
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac(sender) + here + bytes(6) + there + payload


def honest(own: str, address: str, mate: str) -> dict[str, bytes]:
    """Frames that a container may send, by name; *own* is its hardware address."""
    names = ("ip", "ip-multicast", "arp-request", "arp-gratuitous")
    marks = {name: f"<frame {name}>".encode() for name in names}
    return {
        "ip": ethernet(own, 0x0800, udp(address, mate, marks["ip"])),
        "ip-multicast": ethernet(
            own, 0x0800, udp(address, "239.1.1.1", marks["ip-multicast"]), "01:00:5e:01:01:01"
        ),
        "arp-request": ethernet(own, 0x0806, arp(own, address, mate, marks["arp-request"])),
        "arp-gratuitous": ethernet(own, 0x0806, arp(own, address, address, marks["arp-gratuitous"], 2)),
    }


def forged(own: str, address: str, mate: str, vlan: int, other_vlan: int) -> dict[str, bytes]:
    """Frames that a container must not get through, by name."""

    def ip(name: str, source: str = address, sender: str = own, target: str = EVERYONE) -> bytes:
        return ethernet(sender, 0x0800, udp(source, mate, f"<frame {name}>".encode()), target)

    def ask(name: str, sender: str, source: str, frame_sender: str = own) -> bytes:
        return ethernet(frame_sender, 0x0806, arp(sender, source, mate, f"<frame {name}>".encode()))

    def other(name: str, kind: int, target: str = EVERYONE) -> bytes:
        return ethernet(own, kind, f"<frame {name}>".encode().ljust(60, b"\0"), target)

    def six(name: str, source: str, sender: str = own) -> bytes:
        body = udp6(source, "ff02::1", f"<frame {name}>".encode())
        return ethernet(sender, 0x86DD, body, "33:33:00:00:00:01")

    def hop(name: str, *tags: tuple[int, int]) -> bytes:
        return tagged(ip(name), *tags)

    q, ad = 0x8100, 0x88A8
    return {
        "ip-of-mate": ip("ip-of-mate", source=mate),
        "ip-elsewhere": ip("ip-elsewhere", source="192.0.2.9"),
        "ip-none": ip("ip-none", source="0.0.0.0"),  # noqa: S104  # what a DHCP client sends from
        "ip-broadcast": ip("ip-broadcast", source="255.255.255.255"),
        "mac": ip("mac", sender=OTHER_MAC),
        "mac-multicast": ip("mac-multicast", sender="03:00:00:00:00:01"),
        "mac-and-ip": ip("mac-and-ip", source=mate, sender=OTHER_MAC),
        "arp-ip": ask("arp-ip", own, mate),
        "arp-mac": ask("arp-mac", OTHER_MAC, address),
        "arp-frame-mac": ask("arp-frame-mac", own, address, OTHER_MAC),
        "arp-all": ask("arp-all", OTHER_MAC, mate, OTHER_MAC),
        "arp-probe": ask("arp-probe", own, "0.0.0.0"),  # noqa: S104  # stands in a frame
        "rarp": other("rarp", 0x8035),
        "ip6-link-local": six("ip6-link-local", "fe80::1"),
        "ip6-none": six("ip6-none", "::"),
        "ip6-mac": six("ip6-mac", "fe80::2", OTHER_MAC),
        "lldp": other("lldp", 0x88CC, "01:80:c2:00:00:0e"),
        "lldp-broadcast": other("lldp-broadcast", 0x88CC),
        "eapol": other("eapol", 0x888E),
        "mpls": other("mpls", 0x8847),
        "pppoe": other("pppoe", 0x8863),
        "experimental": other("experimental", 0x88B5),
        "llc": other("llc", 60),
        "spanning-tree": other("spanning-tree", 60, "01:80:c2:00:00:00"),
        "cdp": other("cdp", 60, "01:00:0c:cc:cc:cc"),
        "tag-0": hop("tag-0", (q, 0)),
        "tag-0-priority": hop("tag-0-priority", (q, 7 << 13)),
        "tag-own": hop("tag-own", (q, vlan)),
        "tag-other": hop("tag-other", (q, other_vlan)),
        "tag-4095": hop("tag-4095", (q, 4095)),
        "ad-own": hop("ad-own", (ad, vlan)),
        "ad-other": hop("ad-other", (ad, other_vlan)),
        "qinq-own-other": hop("qinq-own-other", (q, vlan), (q, other_vlan)),
        "qinq-0-other": hop("qinq-0-other", (q, 0), (q, other_vlan)),
        "qinq-ad-own-other": hop("qinq-ad-own-other", (ad, vlan), (q, other_vlan)),
        "qinq-ad-other-own": hop("qinq-ad-other-own", (ad, other_vlan), (q, vlan)),
        "qinq-9100": hop("qinq-9100", (0x9100, other_vlan)),
    }


def as_lines(frames: Mapping[str, bytes]) -> str:
    return "".join(f"{name} {frame.hex()}\n" for name, frame in frames.items())


def send(interface: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind((interface, 0))
        for line in sys.stdin:
            link.send(bytes.fromhex(line.split()[1]))
            time.sleep(0.002)


def watch(seconds: float, interface: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as link:
        link.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        link.bind((interface, ETH_P_ALL))
        print("watching", flush=True)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            link.settimeout(left)
            try:
                data, extra, _, (_, _, kind, *_) = link.recvmsg(2048, 64)
            except TimeoutError:
                break
            if kind != OUTGOING and (found := MARK.search(data)):
                print(found[1].decode(), _vlan(extra), flush=True)


def _vlan(extra: list[tuple[int, int, bytes]]) -> int:
    """The VLAN that the kernel took out of the frame, 0 if there was none."""
    for level, kind, data in extra:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, _, _, _, _, tci, _ = struct.unpack("=IIIHHHH", data[:20])
            return tci & 0xFFF if status & VLAN_VALID else 0
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2])
    else:
        watch(float(sys.argv[2]), sys.argv[3])
