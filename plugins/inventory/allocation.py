# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inventory plugin: the hosts of the running batch job."""

from __future__ import annotations

DOCUMENTATION = r"""
name: allocation
short_description: The hosts that the batch system gave to this job
description:
  - Reads the allocation from the environment of the batch job it runs in and makes its hosts the group C(allocation),
    in the order of the job's nodes.
  - Each host gets C(dockerjob_slots) and C(dockerjob_node_index); the group gets C(dockerjob_job_id).
  - Reads LSF's C(LSB_JOBID), C(LSB_JOBINDEX), C(LSB_MCPU_HOSTS), C(LSB_DJOB_HOSTFILE), C(LSB_HOSTS)
    and C(LSB_DJOB_NUMPROC); Slurm's C(SLURM_JOB_ID), C(SLURM_JOB_NODELIST), C(SLURM_TASKS_PER_NODE) and
    C(SLURM_JOB_CPUS_PER_NODE); Grid Engine's C(JOB_ID), C(SGE_TASK_ID) and C(PE_HOSTFILE); PBS's C(PBS_JOBID) and
    C(PBS_NODEFILE).
author:
  - the hpc.dockerjob authors
options:
  plugin:
    description: Marks the file as one for this plugin.
    type: str
    required: true
    choices: [hpc.dockerjob.allocation]
  batch:
    description:
      - Name of the batch system, where the environment looks like that of several.
      - One of C(lsf), C(slurm), C(gridengine) and C(pbs).
    type: str
    default: ""
    env:
      - name: DOCKERJOB_BATCH
  launch_nodes:
    description: Patterns of hosts that the batch system lists and that don't compute; they are left out.
    type: list
    elements: str
    default: []
  host_variables:
    description: Variables to set on every host of the allocation, such as C(ansible_user).
    type: dict
    default: {}
"""

EXAMPLES = r"""
# inventory/lsf.allocation.yml, inside a job: ansible-inventory -i inventory/lsf.allocation.yml --list
plugin: hpc.dockerjob.allocation
host_variables:
  ansible_user: root
"""

import os
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible_collections.hpc.dockerjob.plugins.module_utils.allocation import (
    Allocation,
    inventory_of,
    without,
)
from ansible_collections.hpc.dockerjob.plugins.module_utils.errors import DockerjobError
from ansible_collections.hpc.dockerjob.plugins.module_utils.schedulers import read_allocation


class InventoryModule(BaseInventoryPlugin):  # type: ignore[misc]  # ansible-core ships no types
    """Makes the group ``allocation`` from the environment of the batch job."""

    NAME = "hpc.dockerjob.allocation"

    def verify_file(self, path: str) -> bool:
        """Accept files named ``*allocation.yml`` or ``*allocation.yaml``."""
        return bool(super().verify_file(path)) and path.endswith(("allocation.yml", "allocation.yaml"))

    def parse(self, inventory: InventoryData, loader: DataLoader, path: str, cache: bool = True) -> None:
        """Read the allocation and add its hosts; a wrong environment is one clear line."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        try:
            allocation = self._allocation()
        except DockerjobError as error:
            raise AnsibleParserError(str(error)) from error
        common: dict[str, Any] = self.get_option("host_variables")
        tree = inventory_of(allocation, {host.name: common for host in allocation.hosts})
        for group, content in tree["all"]["children"].items():
            inventory.add_group(group)
            for name, value in content["vars"].items():
                inventory.set_variable(group, name, value)
            for host, variables in content["hosts"].items():
                inventory.add_host(host, group)
                for name, value in variables.items():
                    inventory.set_variable(host, name, value)

    def _allocation(self) -> Allocation:
        """Read the allocation, and leave out the launch nodes."""
        allocation: Allocation = read_allocation(
            os.environ, lambda name: Path(name).read_text(encoding="utf-8"), self.get_option("batch")
        )
        return without(allocation, self.get_option("launch_nodes"))
