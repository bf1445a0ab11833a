# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting, finding, entering and ending one host of the lab."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from . import cgroups, network, root
from .model import NETNS_ROOT, Lab, LabError, LabHost
from .system import CLEAN_ENVIRONMENT, wait_until, write_if_changed

INIT_SCRIPT = Path(__file__).with_name("host_init.sh")
START_TIMEOUT = 30.0


def init_pid(host: LabHost) -> int | None:
    """Process id, as the machine sees it, of the host's init; None if the host is not up.

    The network namespace shows that the process is the host's own and not another one
    that got the number later.
    """
    try:
        pid = int(host.ready_file.read_text())
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    its_network = network.identity(Path(f"/proc/{pid}/ns/net"))
    if comm != "tini" or its_network is None or its_network != network.identity(host.netns):
        return None
    return pid


def required_pid(host: LabHost) -> int:
    """As :func:`init_pid`, but a host that is not up is an error."""
    pid = init_pid(host)
    if pid is None:
        raise LabError(f"host {host.name} of lab {host.lab!r} is not up; run: lab.py --name {host.lab} up")
    return pid


def start(lab: Lab, host: LabHost) -> None:
    """Begin to start *host*, whose network is there and whose processes are gone."""
    root.prepare(lab, host)
    host.ready_file.unlink(missing_ok=True)
    environment = CLEAN_ENVIRONMENT | {
        "HOST_NAME": host.name,
        "HOST_STATE": str(host.state),
        "LAB_STATE": str(lab.state),
    }
    with host.console.open("wb") as console:
        process = subprocess.Popen(
            ["bash", str(INIT_SCRIPT), "enter", host.netns],
            stdin=subprocess.PIPE,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    # It waits for this word, and ends without it: nothing of a host is ever outside its cgroup.
    cgroups.join(host.system_cgroup, process.pid)
    if process.stdin:
        process.stdin.write(b"go\n")
        process.stdin.close()


def wait_ready(host: LabHost) -> None:
    """Wait until *host*, just started, is up."""

    def settled() -> bool:
        return init_pid(host) is not None or not cgroups.processes(host.cgroup)

    wait_until(settled, START_TIMEOUT)
    if init_pid(host) is None:
        raise LabError(f"host {host.name} did not start: {host.console.read_text().strip() or 'no output'}")


def refresh_hosts_file(lab: Lab, host: LabHost) -> bool:
    """Let a running host know all hosts of the lab; True if it did not."""
    return write_if_changed(Path(f"/proc/{required_pid(host)}/root/etc/hosts"), root.hosts_file(lab))


def entering(host: LabHost) -> list[str]:
    """Beginning of an argv that runs a program inside *host*."""
    # Without --root and --wd: those would be looked up in the machine's view.
    return ["nsenter", "--target", str(required_pid(host)), "--all"]


def execute(host: LabHost, command: Sequence[str]) -> None:
    """Become *command* in *host*, as root, with a clean environment."""
    prefix = entering(host)
    cgroups.join(host.system_cgroup)
    environment = CLEAN_ENVIRONMENT | {name: os.environ[name] for name in ("TERM",) if name in os.environ}
    os.execvpe(prefix[0], [*prefix, "--", *command], environment)  # noqa: S606  # no shell is meant


def stop(host: LabHost) -> bool:
    """End all processes of *host*; True if there were any.

    Also ends what others run in its network namespace, such as ssh's proxy.
    """
    killed = cgroups.kill_all(host.cgroup)
    left = network.processes(host.netns) if (NETNS_ROOT / host.netns).exists() else set()
    if left:
        cgroups.kill(left)
        wait_until(lambda: not network.processes(host.netns), 5)
    host.ready_file.unlink(missing_ok=True)
    return killed or bool(left)


def remove(host: LabHost) -> bool:
    """End *host* and remove everything of it; True if there was anything."""
    changed = stop(host)
    changed = cgroups.remove(host.cgroup) or changed
    if (NETNS_ROOT / host.netns).exists():
        network.delete(host.netns)
        changed = True
    if host.state.exists():
        shutil.rmtree(host.state)
        changed = True
    return changed
