# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory of a job's playbooks: its hosts, how they are reached, and what each is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dockerjob_core.allocation import Allocation, inventory_of

from ..config import Config
from .connections import Connections


def job_inventory(
    config: Config,
    allocation: Allocation,
    connections: Connections,
    run: str,
    host_specs: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Build the inventory of a playbook run on the hosts of *allocation*.

    Args:
        config: the site's configuration, which has an address for each host.
        allocation: the hosts.
        connections: the shared connections, which Ansible uses too.
        run: the run of the job, for its marks.
        host_specs: what each host is told at set-up; none at a teardown.
    """
    specs = host_specs or {}
    variables = {
        host.name: {
            "ansible_host": config.hosts[host.name].address,
            "dockerjob_node_spec": dict(specs.get(host.name, {})),
        }
        for host in allocation.hosts
    }
    inventory = inventory_of(allocation, variables)
    settings = config.ansible
    inventory["all"]["children"]["allocation"]["vars"].update(
        ansible_user=settings.user,
        ansible_ssh_private_key_file=settings.private_key,
        ansible_python_interpreter=settings.python_interpreter,
        ansible_pipelining=True,
        ansible_ssh_args=" ".join(["-F", "none", *connections.options()]),
        dockerjob_bridge=config.network.bridge,
        dockerjob_run=run,
    )
    return inventory
