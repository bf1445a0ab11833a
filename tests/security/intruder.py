# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs as COMMAND in a container and tries to get out; prints what came of each attempt as JSON.

``python3 intruder.py NAME=VALUE ...`` takes what the test knows of the world outside.  An attempt
is a function below; what it raises is the answer that it got, and what it returns it has got hold of.
It needs nothing but Python, so it runs in any image.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import json
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWNS = 0x10000000, 0x40000000, 0x00020000
SYS = {"add_key": 248, "bpf": 321, "init_module": 175, "kexec_load": 246, "open_by_handle_at": 304,
       "perf_event_open": 298, "pivot_root": 155, "reboot": 169, "settimeofday": 164, "swapon": 167}  # fmt: skip
"""Numbers of system calls on x86-64."""

LIBC = ctypes.CDLL(None, use_errno=True)
WORLD = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)


def call(name: str, *arguments: object) -> int:
    """Make a system call; raises what it answers."""
    function = getattr(LIBC, name, None)
    result = LIBC.syscall(SYS[name], *arguments) if name in SYS else function(*arguments)  # type: ignore[misc]
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


def write(path: str) -> Callable[[], object]:
    """An attempt to write to a file, or to make it."""

    def attempt() -> object:
        with open(path, "a") as file:
            return file.write("x\n")

    return attempt


def read(path: str) -> Callable[[], object]:
    """An attempt to read a file or a directory."""
    return lambda: (
        os.listdir(path) if os.path.isdir(path) else Path(path).read_bytes()[:100].decode(errors="replace")
    )


def connect(host: str, port: int) -> Callable[[], object]:
    """An attempt to reach a TCP port outside."""

    def attempt() -> object:
        with socket.create_connection((host, port), timeout=3):
            return f"{host}:{port} answers"

    return attempt


def run(*argv: str) -> Callable[[], object]:
    """An attempt of another program, which has to be there."""

    def attempt() -> object:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise PermissionError(errno.EPERM, f"{argv[0]} ended with {done.returncode}: {done.stderr[:200]}")
        return done.stdout

    return attempt


def make_device() -> None:
    os.mknod("/scratch/alice/disk", 0o600 | stat.S_IFBLK, os.makedev(8, 0))


def give_away() -> None:
    path = "/scratch/alice/given"
    Path(path).touch()
    try:
        os.chown(path, 0, 0)
    finally:
        os.unlink(path)


def interface_address() -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return fcntl.ioctl(
            probe, 0x8916, b"eth1".ljust(16, b"\0") + b"\2\0\0\0\x0a\x80\0\x63".ljust(24, b"\0")
        )


def broadcast_outside() -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return probe.sendto(b"x", (WORLD["management"], 9))


ATTEMPTS: dict[str, Callable[[], object]] = {
    # becoming another
    "setuid root": lambda: os.setuid(0),
    "setuid bob": lambda: os.setuid(int(WORLD["bob"])),
    "setgid root": lambda: os.setgid(0),
    "setgroups": lambda: os.setgroups([0]),
    "su": run("su", "-c", "id"),
    "new user namespace": lambda: call("unshare", CLONE_NEWUSER),
    "give a file to root": give_away,
    # other users' files
    "read bob's secret": read("/scratch/bob/private/secret"),
    "touch bob's home": write("/home/bob/spoofed"),
    # the image and the job's own files
    "write /etc/passwd": write("/etc/passwd"),
    "write /etc/group": write("/etc/group"),
    "write /etc/ssh/ssh_config": write("/etc/ssh/ssh_config"),
    "make a file in /etc": write("/etc/x"),
    "change the agent": write("/opt/dockerjob/bin/dockerjob-agent"),
    "change the specification": write("/run/dockerjob/job/spec.json"),
    "change COMMAND": write("/run/dockerjob/job/command"),
    "make a file in the specification": write("/run/dockerjob/job/x"),
    "make a socket beside etcd's": write("/run/dockerjob/relay/x"),
    # the host
    "Docker's socket": read("/var/run/docker.sock"),
    "the broker's configuration": read("/etc/dockerjob/config.yml"),
    "the broker's keys": read("/etc/dockerjob/pki"),
    "the broker's directory": read("/var/lib/dockerjob"),
    "the other jobs' files": read("/run/dockerjob/jobs"),
    "the release": read("/share/dockerjob"),
    "the host's memory": read("/dev/mem"),
    "the host's log": read("/dev/kmsg"),
    "a disk of the host's": make_device,
    "a device that lies on a mounted file system": read("/scratch/alice/fuse"),
    "core_pattern": write("/proc/sys/kernel/core_pattern"),
    "sysrq": write("/proc/sysrq-trigger"),
    "the host's /sys": write("/sys/kernel/uevent_helper"),
    "the control groups": write("/sys/fs/cgroup/x"),
    "chroot": lambda: os.chroot("/"),
    "mount": lambda: call("mount", b"none", b"/mnt", b"tmpfs", 0, None),
    "pivot_root": lambda: call("pivot_root", b"/", b"/"),
    "new mount namespace": lambda: call("unshare", CLONE_NEWNS),
    "sethostname": lambda: socket.sethostname("head"),
    "settimeofday": lambda: call("settimeofday", b"\0" * 16, None),
    "reboot": lambda: call("reboot", 0, 0, 0, None),
    "swapon": lambda: call("swapon", b"/scratch/alice/swap", 0),
    "init_module": lambda: call("init_module", b"", 0, b""),
    "kexec_load": lambda: call("kexec_load", 0, 0, None, 0),
    "bpf": lambda: call("bpf", 0, None, 0),
    "perf_event_open": lambda: call("perf_event_open", b"\0" * 112, -1, 0, -1, 0),
    "add_key": lambda: call("add_key", b"user", b"x", b"x", 1, -2),
    "open_by_handle_at": lambda: call("open_by_handle_at", -100, b"\0" * 128, 0),
    "raise a limit": lambda: call("setrlimit", resource.RLIMIT_NOFILE, struct.pack("QQ", 1 << 30, 1 << 30)),
    "raise the priority": lambda: os.nice(-5),
    # the network
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
    "another address": interface_address,
    "new network namespace": lambda: call("unshare", CLONE_NEWNET),
    "the host's ssh": lambda: connect(WORLD["management"], 22)(),
    "etcd's port": lambda: connect(WORLD["head"], 2379)(),
    "ssh on the loopback": connect("127.0.0.1", 22),
    "etcd on the loopback": connect("127.0.0.1", 2379),
    "a datagram to the host": broadcast_outside,
}


def facts() -> dict[str, object]:
    """What holds of every process here, and what there is."""
    status: dict[str, set[str]] = {}
    for path in glob.glob("/proc/[0-9]*/status"):
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            status.setdefault(name, set()).add(" ".join(value.split()))
    wanted = ("Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    addresses = Path("/proc/net/if_inet6")
    return {
        **{name: sorted(status[name]) for name in wanted},
        "groups": sorted(os.getgroups()),
        "processes": len(glob.glob("/proc/[0-9]*")),
        "devices": sorted(os.listdir("/dev")),
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "routes": len(Path("/proc/net/route").read_text().splitlines()) - 1,
        "ipv6": [line.split()[-1] for line in addresses.read_text().splitlines()]
        if addresses.exists()
        else [],
        "shared memory": os.listdir("/dev/shm"),
        "key": oct(os.stat("/run/dockerjob/job/key.pem").st_mode & 0o777),
    }


def main() -> None:
    """Try everything."""
    came: dict[str, str] = {}
    for name, attempt in ATTEMPTS.items():
        try:
            came[name] = f"GOT {attempt()!r}"
        except Exception as error:  # whatever it is, it is the answer
            number = getattr(error, "errno", None)
            came[name] = errno.errorcode.get(number, "") if number else f"{type(error).__name__}: {error}"
    print(json.dumps({"attempts": came, "facts": facts()}))


if __name__ == "__main__":
    main()
