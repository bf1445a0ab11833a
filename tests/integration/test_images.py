# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images: built once, fit for jobs, and nothing in them that should not be."""

from __future__ import annotations

import json
import sys
import time

import pytest
from agent_fixtures import ROOT, Docker, run

pytestmark = pytest.mark.integration

AS_A_USER = ("run", "--rm", "--network", "none", "--user", "4711:4711", "--cap-drop", "ALL")


def shell(docker: Docker, image: str, script: str) -> str:
    """Run a script in a container of *image*, as a user that the image doesn't know."""
    options = (*AS_A_USER, "--security-opt", "no-new-privileges", "--entrypoint", "/bin/sh")
    return docker.run(*options, image, "-ec", script, timeout=120)


def test_second_build_does_nothing(job_images: dict[str, dict[str, str]]) -> None:
    started = time.monotonic()
    done = run([sys.executable, str(ROOT / "images/build.py"), "mpihello:1", "shell:12"])
    assert done.stdout == "==> shell:12: up to date\n==> mpihello:1: up to date\n"
    # A tenth of this on an idle machine; starting a daemon or a layer would take more.
    assert time.monotonic() - started < 2


def test_unknown_image_is_refused() -> None:
    with pytest.raises(AssertionError, match="no such image: nonsense:1"):
        run([sys.executable, str(ROOT / "images/build.py"), "nonsense:1"])


@pytest.mark.parametrize("image", ["mpihello:1", "shell:12"])
def test_image_passes_its_own_check(image_docker: Docker, image: str) -> None:
    """Also for a user that the image has never heard of."""
    output = shell(image_docker, image, "/opt/dockerjob/bin/dockerjob-agent check --json")
    found = {finding["name"]: finding for finding in json.loads(output)}
    assert not [finding for finding in found.values() if finding["level"] == "missing"]
    if image == "mpihello:1":
        assert "/usr/bin/mpirun.openmpi 4.1." in found["MPI"]["detail"]
        assert "/usr/local/bin/mpiexec.mpich 5." in found["MPI"]["detail"]


def test_nothing_is_left_from_building(image_docker: Docker) -> None:
    left = shell(
        image_docker,
        "mpihello:1",
        "command -v gcc cc make || true; ls /tmp /var/lib/apt/lists /root 2>/dev/null | grep -v : || true;"
        " ls /var/cache/apt/archives/*.deb 2>/dev/null || true;"
        " ls /etc/ssh | grep ssh_host || true; find / -xdev -perm -4000 -name ping 2>/dev/null || true",
    )
    assert left.split() == []


def test_programs_are_compiled(image_docker: Docker) -> None:
    """Containers can't write there, so they would compile the agent at each start."""
    script = "find /opt/dockerjob/lib -name '*.py' | wc -l; find /opt/dockerjob/lib -name '*.pyc' | wc -l"
    sources, compiled = map(int, shell(image_docker, "shell:12", script).split())
    assert sources > 100
    assert compiled >= sources * 0.95


def test_ping_works_without_privileges(image_docker: Docker) -> None:
    assert "1 received" in shell(image_docker, "shell:12", "ping -c 1 -W 1 127.0.0.1")


def test_openfoam_needs_no_shell_setup(image_docker: Docker) -> None:
    """The tutorial of the demo is there, and its mesh is made with the image's ENV alone."""
    output = shell(
        image_docker,
        "openfoam:1912",
        "cp -r $FOAM_TUTORIALS/incompressible/simpleFoam/pitzDaily /tmp/case && cd /tmp/case && blockMesh",
    )
    assert "nCells: 12225" in output
