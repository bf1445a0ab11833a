# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh between the nodes of a job: one key per node, no root, no question ever asked.

A node's one ed25519 key is both its sshd's host key and its client identity, so the
one published SSHPUBKEY gives its peers the line in known_hosts and the one in authorized_keys.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from dockerjob_core import names

DEFAULT_PORT = 2222

PUBLIC_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{60,80}={0,2}( [\w.@-]{1,64})?")
"""What a published key must look like before it goes into authorized_keys."""

NODE_LOCAL = frozenset(
    (
        "HOME",
        "HOSTNAME",
        "LOGNAME",
        "MAIL",
        "OLDPWD",
        "PWD",
        "SHELL",
        "SHLVL",
        "SSH_AUTH_SOCK",
        "TERM",
        "USER",
        "_",
    )
)
"""Variables that belong to a process, a session or a host, so are not handed on by ssh."""


def sshd_program(infra: str = names.INFRA_TARGET) -> str:
    """Return the ssh server: the portable infrastructure's where that was mounted, else the image's."""
    return _program(f"{infra}/sbin/sshd", "/usr/sbin/sshd")


def ssh_program(infra: str = names.INFRA_TARGET) -> str:
    """Return the ssh client, likewise; MPI libraries look for the image's in ``PATH``."""
    return _program(f"{infra}/bin/ssh", "ssh")


def keygen_program(infra: str = names.INFRA_TARGET) -> str:
    """Return ssh-keygen, likewise."""
    return _program(f"{infra}/bin/ssh-keygen", "ssh-keygen")


def _program(portable: str, of_the_image: str) -> str:
    return portable if os.path.exists(portable) else of_the_image


def ssh_config(prefix: str = names.CONTAINER_WRITABLE, port: int = DEFAULT_PORT) -> str:
    """Text of the container's ``/etc/ssh/ssh_config``, root-owned, the same for every job.

    Args:
        prefix: Directory with the node's keys as the container sees it.
        port: Port of the nodes' sshd; an unprivileged one, since sshd runs as the user.
    """
    return f"""# Written by hpc.dockerjob: ssh to a node of this job just works.
Host *_node_*
    Port {port}
    IdentityFile {prefix}/id_ed25519
    IdentitiesOnly yes
    UserKnownHostsFile {prefix}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    UpdateHostKeys no
    BatchMode yes
    PreferredAuthentications publickey
    # The default, sntrup761, costs a third of a second of both machines for each login.
    KexAlgorithms ^curve25519-sha256
    CheckHostIP no
    AddressFamily inet
    ConnectTimeout 10
    LogLevel ERROR
"""


def sshd_config(port: int, environment: Mapping[str, str], directory: str, shell: str) -> str:
    """Text of the node's ``sshd_config``.

    Args:
        port: Port to listen on, on every address: the interface comes after sshd.
        environment: What a remote command (orted, a rank) finds set, as in COMMAND.
        directory: The node's writable directory.
        shell: The user's shell in this image, which the one of ``/etc/passwd`` may stand for.
    """
    return f"""Port {port}
AddressFamily inet
HostKey {directory}/id_ed25519
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
UsePAM no
UseDNS no
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitUserRC no
X11Forwarding no
AllowTcpForwarding no
AllowAgentForwarding no
PermitTunnel no
PrintMotd no
PrintLastLog no
MaxStartups 1000
MaxSessions 1000
LogLevel INFO
{set_env_line(environment, shell)}"""


def set_env_line(environment: Mapping[str, str], shell: str) -> str:
    """Build the one ``SetEnv`` line; sshd takes only the first of several (sshd_config(5)).

    What it sets comes after what sshd itself has set, SHELL among it.
    A value with a control character can't be written in sshd's configuration and is left out.
    """
    exported = {name: value for name, value in environment.items() if _exportable(name, value)}
    if shell.isprintable():
        exported["SHELL"] = shell
    pairs = [
        '"' + f"{name}={value}".replace("\\", "\\\\").replace('"', '\\"') + '"'
        for name, value in sorted(exported.items())
    ]
    return "SetEnv " + " ".join(pairs) + "\n" if pairs else ""


def _exportable(name: str, value: str) -> bool:
    return (
        name.isidentifier()
        and name not in NODE_LOCAL
        and not name.startswith("SUPERVISOR_")
        and value.isprintable()
    )


def generate_key(directory: Path, comment: str) -> subprocess.Popen[bytes]:
    """Start making the node's key pair; wait for the process before using it."""
    for name in ("id_ed25519", "id_ed25519.pub"):
        (directory / name).unlink(missing_ok=True)
    return subprocess.Popen(
        [
            keygen_program(),
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            comment,
            "-f",
            str(directory / "id_ed25519"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def known_hosts(peers: Iterable[tuple[str, str, str]], port: int) -> str:
    """Text of known_hosts for peers given as (name, address, public key)."""
    return "".join(
        f"[{name}]:{port},[{address}]:{port} {' '.join(key.split()[:2])}\n" for name, address, key in peers
    )


def authorized_keys(keys: Iterable[str]) -> str:
    """Text of authorized_keys."""
    return "".join(f"{key}\n" for key in keys)


def hosts(entries: Iterable[tuple[str, str]]) -> str:
    """Text of ``/etc/hosts`` for (address, name) pairs, the node's own first."""
    return "127.0.0.1\tlocalhost\n" + "".join(f"{address}\t{name}\n" for address, name in entries)


def try_login(node: str, timeout: float) -> str | None:
    """Log in to *node* the way MPI will, and run nothing.

    Returns:
        None when it worked, else ssh's last words.
    """
    argv = [ssh_program(), "-n", "-o", f"ConnectTimeout={max(1, int(timeout))}", node, "true"]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            timeout=timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer to {shlex.join(argv)} in {timeout:.0f} s"
    if done.returncode == 0:
        return None
    words = done.stderr.decode(errors="replace").strip().splitlines()
    return words[-1] if words else f"ssh ended with status {done.returncode}"
