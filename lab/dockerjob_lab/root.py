# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The upper directory of a host's root: what hides or changes the machine's own files."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

from .model import Lab, LabHost
from .system import run, write_if_changed

FRESH = (
    "etc/docker",
    "etc/dockerjob",
    "etc/openvswitch",
    "root",
    "var/lib/containerd",
    "var/lib/docker",
    "var/lib/dockerjob",
    "var/lib/dockerjob-lab",
    "var/lib/etcd",
    "var/lib/openvswitch",
    "var/log",
    "var/tmp",
)
"""Directories whose contents on the machine must not show: a host begins with its own."""

WITH_SKELETON = ("etc/openvswitch", "var/log")
"""Those of :data:`FRESH` that keep subdirectories (empty) and symbolic links."""

MOUNT_POINTS = ("scratch", "home", "share", "run", "tmp", "mnt")

SSHD_CONFIG = """\
# Written by lab.py. Only this host key is in the lab's known_hosts.
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
UseDNS no
MaxStartups 200
MaxSessions 200
"""

RAISES_LIMITS = re.compile(r"^(\s*)ulimit\s.*$", re.MULTILINE)


def _directory(upper: Path, relative: str) -> Path:
    """Make *relative* in *upper*, each level with the owner and mode that the machine's has."""
    path, model = upper, Path("/")
    for part in Path(relative).parts:
        path, model = path / part, model / part
        if path.is_dir():
            continue
        path.mkdir(mode=0o755)
        if model.is_dir():
            found = model.stat()
            os.chown(path, found.st_uid, found.st_gid)
            path.chmod(stat.S_IMODE(found.st_mode))
    return path


def _fresh_directory(upper: Path, relative: str) -> None:
    """Hide what the machine has in *relative*, except for what a package put there for good."""
    path = _directory(upper, relative)
    os.setxattr(path, "trusted.overlay.opaque", b"y")
    if relative not in WITH_SKELETON or not (Path("/") / relative).is_dir():
        return
    for entry in os.scandir(Path("/") / relative):
        if entry.is_dir(follow_symlinks=False):
            _directory(upper, f"{relative}/{entry.name}")
        elif entry.is_symlink():
            (path / entry.name).symlink_to(os.readlink(entry.path))


def _limits_can_be_raised() -> bool:
    """Whether an init script's ``ulimit`` works here; in a container it often doesn't."""
    command = ["bash", "-c", "ulimit -n 1048576 && ulimit -u unlimited"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _adapt_docker_script(upper: Path) -> None:
    """Take the ``ulimit`` lines out of Docker's init script where they would make it fail."""
    script = Path("/etc/init.d/docker")
    if not script.exists() or _limits_can_be_raised():
        return
    _directory(upper, "etc/init.d")
    write_if_changed(upper / "etc/init.d/docker", RAISES_LIMITS.sub(r"\1:", script.read_text()), mode=0o755)


def hosts_file(lab: Lab) -> str:
    """Text of /etc/hosts on every host."""
    lines = ["127.0.0.1 localhost", *(f"{host.address} {host.name}" for host in lab.hosts)]
    return "\n".join(lines) + "\n"


def prepare(lab: Lab, host: LabHost) -> None:
    """Make the directories and files a host needs before it starts; keeps what is there.

    Must not be called while the host runs: its upper directory is then the kernel's.
    """
    upper, prepared = host.upper, host.state / "prepared"
    if not prepared.exists() and upper.exists():
        shutil.rmtree(upper)  # an interrupted try
    for directory in (upper, host.state / "docker"):
        directory.mkdir(parents=True, exist_ok=True)
    upper.chmod(0o755)
    (host.state / "docker").chmod(0o710)
    shutil.rmtree(host.state / "work", ignore_errors=True)
    for name in ("work", "root"):
        (host.state / name).mkdir(exist_ok=True)
    for relative in FRESH:
        if not (upper / relative).is_dir():
            _fresh_directory(upper, relative)
    for relative in MOUNT_POINTS:
        _directory(upper, relative)
    _write_files(lab, host)
    prepared.touch()


def _write_files(lab: Lab, host: LabHost) -> None:
    upper = host.upper
    _directory(upper, "etc/ssh/sshd_config.d")
    _directory(upper, "root/.ssh").chmod(0o700)
    write_if_changed(upper / "etc/hostname", host.name + "\n")
    write_if_changed(upper / "etc/hosts", hosts_file(lab))
    write_if_changed(upper / "etc/resolv.conf", "# A lab host has no name server; see /etc/hosts.\n")
    write_if_changed(upper / "etc/ssh/sshd_config.d/00-lab.conf", SSHD_CONFIG)
    write_if_changed(upper / "root/.ssh/authorized_keys", lab.key.with_suffix(".pub").read_text(), mode=0o600)
    host_key = upper / "etc/ssh/ssh_host_ed25519_key"
    if not host_key.with_suffix(".pub").exists():
        host_key.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{host.name}", "-f", str(host_key)])
    _adapt_docker_script(upper)


def host_key(host: LabHost) -> str:
    """Public ssh host key of *host*."""
    key_type, key = (host.upper / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2]
    return f"{key_type} {key}"
