# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an MPI library needs to know to start ranks on all nodes without a flag from the user.

Open MPI 4 (OMPI_MCA_*), Open MPI 5 (PRTE_MCA_*, PMIX_MCA_*), MPICH and others with Hydra
(HYDRA_*) and Intel MPI (I_MPI_*) all read their settings from the environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from dockerjob_core import names
from dockerjob_core.errors import RequestError

from .files import write_atomic
from .spec import Node
from .ssh import ssh_program

HOSTFILE = "hostfile"
MACHINEFILE = "machinefile"

INFINIBAND = Path("/dev/infiniband")

STARTED = "DOCKERJOB_NODE_STARTED"
"""Environment variable in which ``init`` tells the agent when it began."""


def hostfile(nodes: Iterable[Node]) -> str:
    """Text of a host file in Open MPI's form."""
    return "".join(f"{node.name} slots={node.slots}\n" for node in nodes)


def machinefile(nodes: Iterable[Node]) -> str:
    """Text of a machine file in the form of MPICH's Hydra and Intel MPI."""
    return "".join(f"{node.name}:{node.slots}\n" for node in nodes)


def defaults(interface: str, directory: Path, ssh: str) -> dict[str, str]:
    """Environment that makes a plain ``mpirun program`` use the whole allocation.

    Args:
        interface: The job network's interface.
        directory: Where the host files lie.
        ssh: The ssh client; with its path where the image has none in ``PATH``.
    """
    open_mpi = str(directory / HOSTFILE)
    hydra = str(directory / MACHINEFILE)
    # UCX (below MPICH and some Open MPI) would use every interface, the loopback included.
    # Where there is InfiniBand it must choose its devices itself.
    ucx = {} if any(INFINIBAND.glob("uverbs*")) else {"UCX_NET_DEVICES": interface}
    # MPICH calls what follows its launcher's name, Intel MPI its bootstrap's, by that name unless told so.
    hydra_ssh = {"HYDRA_LAUNCHER_EXEC": ssh, "I_MPI_HYDRA_BOOTSTRAP_EXEC": ssh} if ssh.startswith("/") else {}
    return {
        **ucx,
        **hydra_ssh,
        "OMPI_MCA_orte_default_hostfile": open_mpi,
        "OMPI_MCA_plm_rsh_agent": ssh,
        "OMPI_MCA_oob_tcp_if_include": interface,
        "OMPI_MCA_btl_tcp_if_include": interface,
        # Single copy between processes (CMA) needs ptrace rights that containers lack.
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
        "OMPI_MCA_smsc": "^cma",
        "MPIR_CVAR_CH4_CMA_ENABLE": "0",
        # The other ways to encode a list of nodes refuse the underscore in our nodes' names.
        "OMPI_MCA_regx": "naive",
        # Suspending mpirun suspends the ranks on all nodes.
        "OMPI_MCA_orte_forward_job_control": "1",
        "PRTE_MCA_prte_default_hostfile": open_mpi,
        "PRTE_MCA_plm_ssh_agent": ssh,
        "PRTE_MCA_prte_if_include": interface,
        "PMIX_MCA_ptl_tcp_if_include": interface,
        "HYDRA_HOST_FILE": hydra,
        "HYDRA_LAUNCHER": "ssh",
        "HYDRA_IFACE": interface,
        "FI_TCP_IFACE": interface,
        "I_MPI_HYDRA_HOST_FILE": hydra,
        "I_MPI_HYDRA_BOOTSTRAP": "ssh",
        "I_MPI_HYDRA_IFACE": interface,
    }


def job_environment(
    container: Mapping[str, str], request: Mapping[str, str], interface: str, directory: Path
) -> dict[str, str]:
    """Environment of COMMAND and of what ssh starts for it: MPI defaults < image < request.

    Variables of the image that were kept from the agent get their own names again, and those that are
    the agent's go.
    """
    own = ("SUPERVISOR_", STARTED)
    kept = {
        name.removeprefix(names.IMAGE_VARIABLE): value
        for name, value in container.items()
        if not name.startswith(own)
    }
    return {**defaults(interface, directory, ssh_program()), **kept, **request}


def write_host_files(nodes: Iterable[Node], directory: Path) -> None:
    """Write both host files of the node."""
    listed = tuple(nodes)
    write_atomic(directory / HOSTFILE, hostfile(listed), 0o644)
    write_atomic(directory / MACHINEFILE, machinefile(listed), 0o644)


def write_job_hostfile(nodes: Iterable[Node], jobdir: Path, relative: str) -> Path:
    """Write the host file where COMMAND expects it, inside JOBDIR, and return its path.

    Raises:
        RequestError: The path leads out of JOBDIR, or can't be written.
    """
    root = jobdir.resolve()
    target = root / relative
    try:
        parent = target.parent.resolve()
        if Path(relative).is_absolute() or ".." in Path(relative).parts or not parent.is_relative_to(root):
            raise RequestError(f"HOSTFILE {relative} leads out of JOBDIR {jobdir}; give a path inside it")
        parent.mkdir(parents=True, exist_ok=True)
        write_atomic(parent / target.name, hostfile(nodes), 0o644)
    except OSError as error:
        raise RequestError(f"cannot write HOSTFILE {relative} in {jobdir}: {error.strerror}") from error
    return target
