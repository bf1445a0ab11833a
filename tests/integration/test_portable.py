# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The portable infrastructure: jobs in images that know nothing of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from agent_fixtures import UID, Docker, JobContainers
from dockerjob_core import names

pytestmark = pytest.mark.integration

FOREIGN = ("foreign:minimal", "foreign:glibc", "foreign:musl")
SHELL_OF = {"foreign:minimal": "/bin/sh", "foreign:glibc": "/bin/bash", "foreign:musl": "/bin/sh"}
SSH = f"{names.INFRA_TARGET}/bin/ssh"

EXPECTED = {
    "GREETING",
    "HOME",
    "HOSTNAME",
    "LOGNAME",
    "MAIL",
    "OLDPWD",
    "PATH",
    "PWD",
    "SHELL",
    "SHLVL",
    "USER",
    "_",
}
PRELOADED = f"{names.CONTAINER_WRITABLE}/no-library"
"""What LD_PRELOAD names; a loader that looks at it says that it can't be preloaded."""

OF_MPI = ("OMPI_", "PRTE_", "PMIX_", "HYDRA_", "I_MPI_", "MPIR_", "FI_", "UCX_")
OF_SSH = {"SSH_CLIENT", "SSH_CONNECTION"}


@pytest.mark.parametrize("image", FOREIGN)
def test_image_has_nothing_that_jobs_need(image_docker: Docker, image: str) -> None:
    """Else the tests below would show nothing."""
    script = (
        "for name in python3 ssh sshd ssh-keygen openssl; do command -v $name; done;"
        " ls /etc/ssl /opt/dockerjob || true"
    )
    options = ("run", "--rm", "--network", "none", "--user", f"{UID}:{UID}", "--entrypoint", "/bin/sh")
    assert image_docker.run(*options, image, "-c", script, timeout=60) == ""
    bash = image_docker.run(*options, image, "-c", "command -v bash || true", timeout=60)
    assert bool(bash) == (image == "foreign:glibc")


@pytest.mark.parametrize("image", FOREIGN)
def test_job_over_two_nodes(job: JobContainers, portable: Path, image: str) -> None:
    """Discovery, ssh both ways, COMMAND's shell and exit status, and no variable of ours in what it runs."""
    job.image, job.portable = image, portable
    first, second = job.nodes
    job.docker_options = ("--read-only", "--tmpfs", "/tmp:mode=1777", "--env", "PYTHONHOME=/nowhere")
    # As the host hands on what an image says to its own loader.
    kept = {"LD_LIBRARY_PATH": "/nowhere", "LD_PRELOAD": PRELOADED}
    job.docker_options += tuple(
        word for name, value in kept.items() for word in ("--env", f"{names.IMAGE_VARIABLE}{name}={value}")
    )
    job.prepare(
        f"env; echo ---; {SSH} {second} env; echo ---; {SSH} {second} {SSH} {first} cat /proc/sys/kernel/hostname;"
        f" {SSH} {second} 'echo \"$GREETING $0\"'; cat /proc/$$/cmdline; exit 9"
    )
    job.start()
    assert job.wait_for_end(0) == 9
    assert job.wait_for_end(1) == 0
    command, remote, rest = job.output().split("---\n")
    shell = SHELL_OF[image]
    for text, further in ((command, set()), (remote, OF_SSH)):
        variables = dict(line.split("=", 1) for line in text.splitlines())
        left = {name for name in variables if not name.startswith(OF_MPI)}
        assert left - further <= EXPECTED | {"PYTHONHOME", *kept}
        assert {name: variables[name] for name in kept} == kept
        assert variables["PYTHONHOME"] == "/nowhere"
        assert variables["SHELL"] == shell
        assert names.INFRA_TARGET not in variables["PATH"]
        assert variables["OMPI_MCA_plm_rsh_agent"] == variables["HYDRA_LAUNCHER_EXEC"] == SSH
    # All of this image's own programs are static, so a word of a loader would be one of ours.
    assert image != "foreign:musl" or "preload" not in rest
    assert rest.startswith(f'{first}\nsay "hello" {shell}\n{shell}\0-c\0')


@pytest.mark.parametrize("image", FOREIGN)
def test_the_agents_own_check_finds_it(image_docker: Docker, portable: Path, image: str) -> None:
    """``dockerjob-agent check`` in such an image, as somebody would call it who wonders whether it fits."""
    options = ("run", "--rm", "--network", "none", "--user", f"{UID}:{UID}", "--read-only")
    options += ("--volume", f"{portable}:{names.INFRA_TARGET}:ro", "--tmpfs", "/tmp:mode=1777")
    agent = f"{names.INFRA_TARGET}/bin/dockerjob-agent"
    told = image_docker.run(*options, "--entrypoint", agent, image, "check", "--no-application", "--json")
    found = {finding["name"]: finding for finding in json.loads(told)}
    for name in ("ssh server", "ssh client", "ssh-keygen", "python", "agent", "entry point"):
        assert (found[name]["level"], names.INFRA_TARGET in found[name]["detail"]) == ("ok", name != "agent")
    assert found["bash"]["level"] == ("ok" if image == "foreign:glibc" else "note")


def test_image_without_any_shell(job: JobContainers, portable: Path) -> None:
    """COMMAND is then run by the infrastructure's own; what it calls is the image's matter."""
    job.count, job.image, job.portable = 1, "foreign:musl", portable
    job.docker_options = ("--volume", "/dev/null:/bin/sh:ro")
    job.prepare("echo $0; exit 4")
    job.start()
    assert job.wait_for_end(0) == 4
    assert job.output() == f"{names.INFRA_TARGET}/bin/sh\n"


def test_mpi_finds_the_infrastructures_ssh(job: JobContainers, portable: Path) -> None:
    """All kinds of MPI start ranks on the other node, although the image has no ssh."""
    job.portable = portable
    hidden = ("/usr/bin/ssh", "/usr/sbin/sshd", "/usr/bin/ssh-keygen", "/usr/bin/python3.11")
    job.docker_options = tuple(word for path in hidden for word in ("--volume", f"/dev/null:{path}:ro"))
    job.prepare(
        "mpirun.openmpi hello.openmpi && mpirun.openmpi5 hello.openmpi5 && mpiexec.mpich hello.mpich; exit 7"
    )
    job.start()
    assert job.wait_for_end(0) == 7
    for node in job.nodes:
        assert job.output().count(f"on {node}") == 2 * 3


def test_programs_take_nothing_from_the_image(portable: Path) -> None:
    """Each has the directory's loader and libraries in it, and what is found elsewhere is not theirs."""
    programs = [path for name in ("bin", "libexec", "sbin") for path in (portable / name).iterdir()]
    elf = [path for path in programs if not path.is_symlink() and path.read_bytes()[:4] == b"\x7fELF"]
    assert len(elf) == 5
    for path in elf:
        # The shell runs in COMMAND's environment: it is static, so there is no loader to be misled.
        assert (
            path.name == "sh"
            or f"{names.INFRA_TARGET}/lib/ld-linux-x86-64.so.2\0".encode() in path.read_bytes()
        )
    loader = (portable / "lib/ld-linux-x86-64.so.2").read_bytes()
    assert not [name for name in (b"/etc/ld.so.cache\0", b"/etc/ld.so.preload\0") if name in loader]


def test_directory_is_roots_and_open_to_read(portable: Path) -> None:
    for path in portable.rglob("*"):
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (0, 0)
        assert path.is_symlink() or (status.st_mode & 0o022 == 0 and status.st_mode & 0o044 == 0o044)
