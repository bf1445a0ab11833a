# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a broker watches of the job's tree: READY of each node, and FINISH.

The job's processes may write there whatever they like, so values are cut and checked
before they mean anything, and other keys are not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from dockerjob_core import names
from dockerjob_core.jobtree import RUNNING, exit_status

LONGEST_VALUE = 64


class WatchedTree:
    """The keys and their latest values."""

    def __init__(self, job_id: str, hosts: Sequence[str]) -> None:
        """Know of nothing yet; *hosts* are those of the nodes, in their order."""
        self.finish_key = names.finish_key(job_id)
        self._nodes = {
            names.node_key(job_id, index, "READY"): f"{names.node_name(job_id, index)} on {host}"
            for index, host in enumerate(hosts)
        }
        self.keys = frozenset((self.finish_key, *self._nodes))
        self._values: dict[str, bytes] = {}

    def take(self, key: str, value: bytes) -> None:
        """Keep the value of one of the keys."""
        if key in self.keys:
            self._values[key] = value[:LONGEST_VALUE]

    @property
    def ready(self) -> bool:
        """Whether every node is."""
        return not self.waiting()

    def waiting(self) -> list[str]:
        """Name the nodes that are not READY, with their hosts."""
        return [name for key, name in self._nodes.items() if self._values.get(key) != b"True"]

    def status(self) -> int | None:
        """Return COMMAND's exit status, None while it runs.

        Raises:
            DiscoveryError: FINISH holds something else, which the agent does not write.
        """
        value = self._values.get(self.finish_key, RUNNING)
        if value == RUNNING:
            return None
        return exit_status(value)
