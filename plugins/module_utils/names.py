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

JOB_KEYS = ("/1", "/:")
"""Range that holds the trees of all jobs: ``/``, then a digit (``:`` comes after ``9``), then whatever."""

NETWORKS = BOOKKEEPING + "/networks"
JOBS = BOOKKEEPING + "/jobs"
LEADERS = BOOKKEEPING + "/leaders"

REAPERS = BOOKKEEPING + "/reapers"
"""One key per host that runs a reaper, under a lease of the reaper's."""

LABEL_JOB = "dockerjob.job"
LABEL_NODE = "dockerjob.node"
"""Docker labels of a container: the mark that clean-up goes by."""

LABEL_RUN = "dockerjob.run"
"""Label with the run of the job: the batch system may run the same job id again, see :func:`run_id`."""

LABEL_SPEC = "dockerjob.spec"
"""Label with a digest of all a container was made from; a container with another one is replaced."""

LABEL_INFRA = "dockerjob.infra"
"""Label of an image that has the infrastructure layer."""

INFRA_TARGET = "/opt/dockerjob"
"""Where a container has the infrastructure, be it the image's own layer or the host's portable one."""

INFRA_HOST = "/opt/dockerjob-infra/current"
"""On a host: a link to the version of the portable infrastructure that new containers get.

Not below ``/var/lib``: the daemon takes a path that begins like its own, ``/var/lib/docker``, for one within that,
and refuses a private mount of it (seen with 20.10).
"""

SHELLS = ("ash", "bash", "csh", "dash", "fish", "ksh", "ksh93", "mksh", "sh", "tcsh", "zsh")
"""Names of shells for which the portable infrastructure has a stand-in, see :func:`login_shell`."""

IMAGE_VARIABLE = "DOCKERJOB_IMAGE_"
"""Prefix of an image's variable that is kept from the infrastructure's own processes, and given to COMMAND."""

OVS_JOB = "dockerjob_job"
OVS_CONTAINER = "container_id"
OVS_INTERFACE = "container_iface"
"""``external_ids`` of an OVS port; the last two are those of ovs-docker(8)."""

OVS_COOKIE = "dockerjob_cookie"
OVS_MAC = "dockerjob_mac"
OVS_ADDRESS = "dockerjob_address"
"""``external_ids`` of an OVS port: all that its flows are made from, so that they can be put back."""

FLOW_COOKIES = 0xD0C5 << 48
FLOW_COOKIES_MASK = 0xFFFF << 48
"""Cookies of OpenFlow flows that begin like this are ours; the mark of a job's flows is one of them."""

RUNTIME_ROOT = "/run/dockerjob"
"""On a host: the etcd relay's socket and one directory per job, all on tmpfs."""

RELAY_DIRECTORY = RUNTIME_ROOT + "/relay"
RELAY_SOCKET = RELAY_DIRECTORY + "/etcd.sock"

CONTAINER_READ_ONLY = RUNTIME_ROOT + "/job"
CONTAINER_WRITABLE = RUNTIME_ROOT + "/node"
"""Where a container sees its job's root-owned files, and the ones that are the agent's to write."""


STAGING_PARTIAL = ".dockerjob.partial"
"""Directory, beside a file that is being staged, in which what has come of it is kept for the next try."""

CGROUP_PARENT_FILE = "/etc/dockerjob/cgroup_parent"
"""On a host: the cgroup below which jobs have theirs, in the form that its Docker daemon takes; the role job_host's."""


def check_job_id(job_id: str) -> str:
    """Return *job_id* unchanged, or raise ``ValueError`` if it is no job id."""
    if not JOB_ID.fullmatch(job_id):
        raise ValueError(
            f"not a job id: {job_id!r} (expected a number, or number_index for an array element)"
        )
    return job_id


def job_id_of(number: int, array_index: int | None = None) -> str:
    """Build the job id of batch job *number*, or of the element *array_index* of it; an array may begin with 0."""
    return check_job_id(str(number) if array_index is None else f"{number}_{array_index}")


def parts_of_job_id(job_id: str) -> tuple[int, int | None]:
    """Return what :func:`job_id_of` has made *job_id* of."""
    number, _, index = check_job_id(job_id).partition("_")
    return int(number), int(index) if index else None


def run_id(lease_id: int) -> str:
    """Name of one run of a job: its lease, in hex as etcdctl shows it.

    A job id comes again when its job is requeued; a lease id never does.  What cleans up after a
    dead run goes by this mark, so it can't hit the run that came after it.
    """
    return f"{lease_id:x}"


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


def leader_key(job_id: str) -> str:
    """Key that exists while a broker leads the job, under a lease of the broker's own; it holds the job's phases."""
    return f"{LEADERS}/{check_job_id(job_id)}"


def reaper_key(host: str) -> str:
    """Key that is there while a reaper runs on *host*."""
    return f"{REAPERS}/{host}"


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


def scratch_prefix(job_id: str) -> str:
    """Beginning of the name of the job's directory in scratch space; what follows makes it unique."""
    return f"dockerjob.{check_job_id(job_id)}."


def cgroup_name(job_id: str) -> str:
    """Name of the job's cgroup on each of its hosts; without a dash, which nests systemd's slices."""
    return f"dockerjob_{check_job_id(job_id)}"


def port_name(container: str) -> str:
    """Host side of a container's veth pair: stable, and within the kernel's 15 characters."""
    return "dj" + hashlib.sha256(container.encode()).hexdigest()[:12]


def mac_address(port: str) -> str:
    """Hardware address of the container behind *port*: locally administered, no multicast address."""
    first, *others = hashlib.sha256(port.encode()).digest()[:6]
    return ":".join(f"{byte:02x}" for byte in (first & 0xFC | 0x02, *others))


def flow_cookie(owner: str) -> int:
    """Mark of the flows of *owner*: a job's id, or the name of a port that is no job's."""
    return FLOW_COOKIES | int.from_bytes(hashlib.sha256(owner.encode()).digest()[:6], "big")


def login_shell(shell: str) -> str:
    """Return what ``/etc/passwd`` has as a user's shell where the image need not have that *shell*.

    It is a program of the portable infrastructure with the shell's own name, by which MPI libraries
    know how to speak to it; one that they don't know has the name ``sh``.
    """
    name = shell.rpartition("/")[2]
    return f"{INFRA_TARGET}/shells/{name if name in SHELLS else 'sh'}"


def link_alias(job_id: str) -> str:
    """Alias of the host side of a veth pair: the mark of a link that is in no bridge (any more)."""
    return f"{LABEL_JOB}={check_job_id(job_id)}"
