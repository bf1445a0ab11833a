# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every generated name, key, path and mark of a job, made in this one file.

A *job id* is the batch system's number, followed by ``_<index>`` for an element of
a job array (``748``, ``19_3``).  It names the job's tree in etcd, its nodes, its
containers and its ports, so it is checked here before anything is built from it.
"""

from __future__ import annotations

import hashlib
import re

JOB_ID = re.compile(r"[1-9][0-9]{0,17}(_[0-9]{1,9})?")
"""What a job id looks like; use :func:`check_job_id`, which matches the whole text."""

BOOKKEEPING = "/dockerjob"
"""The project's own prefix in etcd: reservations and the index of jobs."""

NETWORKS = BOOKKEEPING + "/networks"
JOBS = BOOKKEEPING + "/jobs"

LABEL_JOB = "dockerjob.job"
LABEL_NODE = "dockerjob.node"
"""Docker labels of a container: the mark that clean-up goes by."""

LABEL_SPEC = "dockerjob.spec"
"""Label with a digest of all a container was made from; a container with another one is replaced."""

OVS_JOB = "dockerjob_job"
OVS_CONTAINER = "container_id"
OVS_INTERFACE = "container_iface"
"""``external_ids`` of an OVS port; the last two are those of ovs-docker(8)."""

RUNTIME_ROOT = "/run/dockerjob"
"""On a host: the etcd relay's socket and one directory per job, all on tmpfs."""

RELAY_DIRECTORY = RUNTIME_ROOT + "/relay"
RELAY_SOCKET = RELAY_DIRECTORY + "/etcd.sock"

CONTAINER_READ_ONLY = RUNTIME_ROOT + "/job"
CONTAINER_WRITABLE = RUNTIME_ROOT + "/node"
"""Where a container sees its job's root-owned files, and the ones that are the agent's to write."""


def check_job_id(job_id: str) -> str:
    """Return *job_id* unchanged, or raise ``ValueError`` if it is no job id."""
    if not JOB_ID.fullmatch(job_id):
        raise ValueError(
            f"not a job id: {job_id!r} (expected a number, or number_index for an array element)"
        )
    return job_id


def job_id_of(number: int, array_index: int = 0) -> str:
    """Build the job id of batch job *number*; index 0 means that it is no array element."""
    return check_job_id(f"{number}_{array_index}" if array_index else str(number))


def node_name(job_id: str, index: int) -> str:
    """Name of node *index*: its container, its host name and its directory in the job tree."""
    return f"{check_job_id(job_id)}_node_{index:d}"


def job_prefix(job_id: str) -> str:
    """Prefix of the job's tree in etcd; everything a job may touch lies under it."""
    return f"/{check_job_id(job_id)}/"


def finish_key(job_id: str) -> str:
    """Key that holds ``FALSE`` while the job runs and COMMAND's exit status after it."""
    return job_prefix(job_id) + "FINISH"


def node_key(job_id: str, index: int, leaf: str) -> str:
    """Key of node *index*; *leaf* is ``IP``, ``SSHPUBKEY`` or ``READY``."""
    return f"{job_prefix(job_id)}{node_name(job_id, index)}/{leaf}"


def job_index_key(job_id: str) -> str:
    """Key of the job's record in the index of jobs."""
    return f"{JOBS}/{check_job_id(job_id)}"


def subnet_key(subnet: str) -> str:
    """Key whose existence reserves *subnet* (CIDR; the slash would read as a level)."""
    return f"{NETWORKS}/subnet/{subnet.replace('/', '_')}"


def vlan_key(vlan: int) -> str:
    """Key whose existence reserves VLAN *vlan*."""
    return f"{NETWORKS}/vlan/{vlan:d}"


def network_key(job_id: str) -> str:
    """Key that holds the network reserved for the job (JSON: subnet, vlan)."""
    return f"{NETWORKS}/job/{check_job_id(job_id)}"


def etcd_user(job_id: str) -> str:
    """etcd user and role of a job; also the common name of its client certificate."""
    return f"job-{check_job_id(job_id)}"


def host_job_directory(job_id: str, runtime_root: str = RUNTIME_ROOT) -> str:
    """Directory on a host with all files of the job; removed with the job."""
    return f"{runtime_root}/jobs/{check_job_id(job_id)}"


def port_name(container: str) -> str:
    """Host side of a container's veth pair: stable, and within the kernel's 15 characters."""
    return "dj" + hashlib.sha256(container.encode()).hexdigest()[:12]


def link_alias(job_id: str) -> str:
    """Alias of the host side of a veth pair: the mark of a link that is in no bridge (any more)."""
    return f"{LABEL_JOB}={check_job_id(job_id)}"
