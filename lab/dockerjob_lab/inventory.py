# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab gives to an admin: an Ansible inventory, like one of real hosts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from .model import IMAGES, Lab, LabHost

SSH_ARGS = (
    '-o ProxyCommand="nsenter --net=/run/netns/{netns} nc %h %p"'
    " -o UserKnownHostsFile={known_hosts} -o StrictHostKeyChecking=yes"
)


# What an admin of a site with a shared file system on /share would set.
SITE: Mapping[str, object] = {
    "job_images_index": f"{IMAGES}/out/images.json",
    "job_images_directory": "/share/images",
    "job_images_shared": True,
    "job_images_names": ["mpihello:1", "openfoam:1912", "foreign:minimal", "foreign:musl"],
    "registry_deployment": "container",
    "submit_host_install_root": "/share/dockerjob",
    "submit_host_install_shared": True,
    "submit_host_bin_dir": "/share/bin",
    "submit_host_scratch": {"path": "/scratch", "local": ["/local"]},
    # All hosts of a lab share one machine's cores: a rank that waits must not spin.
    "submit_host_batch": {
        "lsf": {"bjobs": "/share/lsf/bin/bjobs", "limits": "ask", "bpost": "/share/lsf/bin/bpost"},
        "slurm": {"squeue": "/usr/bin/squeue"},
    },
    "submit_host_container": {
        "seccomp_profile": "/etc/dockerjob/seccomp.json",
        "environment": {"OMPI_MCA_mpi_yield_when_idle": "1"},
        # Its daemons can't raise limits, see docs/lab.md.
        "ulimits": [
            {"name": "memlock", "soft": 8 << 20, "hard": 8 << 20},
            {"name": "stack", "soft": -1, "hard": -1},
            {"name": "nofile", "soft": 16384, "hard": 16384},
        ],
    },
    # Command lines of OpenFOAM name this hostfile, as the deck's does.
    "submit_host_applications": {"openfoam:1912": {"hostfile": "system/machines"}},
}


def _common_variables(lab: Lab) -> dict[str, str]:
    return {
        "ansible_user": "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_private_key_file": str(lab.key),
        "ansible_ssh_common_args": SSH_ARGS.format(netns=lab.hosts[0].netns, known_hosts=lab.known_hosts),
        # Ansible names its connections by address, port and user, which all labs share.
        "ansible_control_path_dir": str(lab.state / "cp"),
        "ovs_uplink": "eth1",
    }


def _own_variables(host: LabHost) -> dict[str, str]:
    return {"ansible_host": host.address, "docker_host_cgroup_parent": host.cgroup}


def host_variables(lab: Lab, host: LabHost) -> dict[str, str]:
    """All inventory variables of *host*."""
    return {**_common_variables(lab), **_own_variables(host)}


def groups(lab: Lab) -> dict[str, tuple[LabHost, ...]]:
    """The admin's groups; etcd has three members, or one where there are not enough hosts."""
    compute = lab.hosts[1:]
    return {
        "docker_hosts": lab.hosts,
        "compute_hosts": compute,
        "ovs_hosts": compute,
        "submit_hosts": compute,
        "registry": lab.hosts[:1],
        "reaper_hosts": compute[-1:],
        "etcd": lab.hosts[:3] if len(lab.hosts) >= 3 else lab.hosts[:1],
    }


def _mapping(variables: Mapping[str, object], indent: int) -> Iterable[str]:
    # JSON is YAML, whatever is in a string.
    return (f"{'':{indent}}{name}: {json.dumps(value)}" for name, value in variables.items())


def text(lab: Lab) -> str:
    """The inventory of *lab* as YAML."""
    lines = [f"# Written by lab.py for the lab {lab.name!r}; changes are lost.", "all:", "  vars:"]
    lines += _mapping({**_common_variables(lab), **SITE}, 4)
    lines.append("  hosts:")
    for host in lab.hosts:
        lines += [f"    {host.name}:", *_mapping(_own_variables(host), 6)]
    lines.append("  children:")
    for group, members in groups(lab).items():
        lines += [f"    {group}:", "      hosts:", *(f"        {host.name}:" for host in members)]
    return "\n".join(lines) + "\n"
