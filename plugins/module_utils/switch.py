# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ovs-vswitchd may be started anew under jobs: then their flows have to be put back.

Flows live in its memory only.  ``ovs-ctl restart`` saves them, but a crash, ``systemctl
restart`` and Debian's init script do not, and until they are there again the bridge passes
nothing (it fails closed).  What they are made from stands in the database.

A guard loads this while the job starts, so what mending needs is loaded for it only.
"""

from __future__ import annotations

import os
from contextlib import suppress

from .errors import HostError

DAEMON = "ovs-vswitchd"


def daemon() -> int | None:
    """Open a pidfd of ovs-vswitchd, readable when it has ended; ``None`` if none runs."""
    path = os.path.join(os.environ.get("OVS_RUNDIR", "/run/openvswitch"), f"{DAEMON}.pid")
    with suppress(OSError, ValueError):
        with open(path, encoding="ascii") as file:
            pid = int(file.read())
        descriptor = os.pidfd_open(pid)
        with open(f"/proc/{pid}/comm", encoding="ascii") as file:
            if file.read().strip() == DAEMON:
                return descriptor
        os.close(descriptor)
    return None


def daemon_runs() -> bool:
    """Tell whether ovs-vswitchd runs."""
    descriptor = daemon()
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


class SwitchWatch:
    """Notices the end of ovs-vswitchd, and mends a bridge when the next one runs."""

    def __init__(self, bridge: str) -> None:
        """Watch the ovs-vswitchd that runs now."""
        self._bridge = bridge
        self._process = daemon()

    @property
    def process(self) -> int | None:
        """The pidfd of ovs-vswitchd, readable when it has ended; ``None`` while there is something to mend."""
        return self._process

    def ended(self) -> None:
        """Take in that it has ended."""
        if self._process is not None:
            os.close(self._process)
            self._process = None

    def mend(self) -> bool:
        """Put back the flows that are missing, if ovs-vswitchd runs again; say whether all is well now."""
        if self._process is None:
            self._process = daemon()
        if self._process is None:
            return False
        try:
            missing = restore(self._bridge)
        except HostError:
            missing = True
        if missing:
            # It opens its ports one by one after its start: look once more.
            self.ended()
        return not missing


def restore(bridge: str) -> bool:
    """Put back the flows that *bridge* lacks; say whether there were any.

    Raises:
        HostError: Open vSwitch does not answer, or has no such bridge.
    """
    from . import flows, ovs

    state = ovs.read_state()
    state.bridge(bridge)
    lines = flows.plan_bridge(flows.of_bridge(state, bridge), flows.read(bridge))
    if lines:
        flows.apply(bridge, lines)
    return bool(lines)
