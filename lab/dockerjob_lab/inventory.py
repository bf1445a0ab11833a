# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab gives to an admin: an Ansible inventory, like one of real hosts."""

from __future__ import annotations

from .model import Lab, LabHost

SSH_ARGS = (
    '-o ProxyCommand="nsenter --net=/run/netns/{netns} nc %h %p"'
    " -o UserKnownHostsFile={known_hosts} -o StrictHostKeyChecking=yes"
)

TEMPLATE = """\
# Written by lab.py for the lab {name!r}; changes are lost.
all:
  vars:
    ansible_user: root
    ansible_python_interpreter: /usr/bin/python3
    ansible_ssh_private_key_file: {key}
    ansible_ssh_common_args: >-
      {ssh_args}
    # Of its own, since every lab uses the same addresses.
    ansible_control_path_dir: {state}/cp
    ovs_uplink: eth1
  hosts:
{hosts}
  children:
    docker_hosts:
      hosts:
{all}
    compute_hosts:
      hosts:
{compute}
    ovs_hosts:
      hosts:
{compute}
    submit_hosts:
      hosts:
{compute}
    etcd:
      hosts:
{etcd}
"""


def _members(hosts: tuple[LabHost, ...]) -> str:
    return "\n".join(f"        {host.name}:" for host in hosts)


def _host(host: LabHost) -> str:
    return (
        f"    {host.name}:\n"
        f"      ansible_host: {host.address}\n"
        f"      docker_host_cgroup_parent: {host.cgroup}"
    )


def text(lab: Lab) -> str:
    """The inventory of *lab*: three etcd members, or one where there are not enough hosts."""
    members = lab.hosts[:3] if len(lab.hosts) >= 3 else lab.hosts[:1]
    ssh_args = SSH_ARGS.format(netns=lab.hosts[0].netns, known_hosts=lab.known_hosts)
    return TEMPLATE.format(
        name=lab.name,
        key=lab.key,
        state=lab.state,
        ssh_args=ssh_args,
        hosts="\n".join(map(_host, lab.hosts)),
        all=_members(lab.hosts),
        compute=_members(lab.hosts[1:]),
        etcd=_members(members),
    )
