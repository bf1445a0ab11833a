# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``dockerjob images check`` on real images, the templates, and builds that come out the same twice."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_fixtures import ROOT, Docker
from build import MMDEBSTRAP, bootstrap
from builder import BuildError
from reproducible import rewrite

pytestmark = pytest.mark.integration

TEMPLATES = ROOT / "images/templates"
PACKAGE = "hello=2.10-3"
"""A small stand-in for an application; the version is that of Debian 12."""

FAULTY = """
FROM shell:12
RUN rm -r /opt/dockerjob/lib/python3*/site-packages/etcd3
RUN mkdir -p /opt/solver/bin /opt/scratch /opt/private && chmod 777 /opt/scratch && chmod 700 /opt/private \
 && cp /bin/true /opt/solver/bin/helper && chmod 4755 /opt/solver/bin/helper \
 && cp /bin/true /opt/solver/bin/probe \
 && /opt/dockerjob/bin/python -c "import os; os.setxattr('/opt/solver/bin/probe', 'security.capability', \
bytes([1, 0, 0, 2, 0, 32]) + bytes(14))" \
 && printf '#!/bin/sh\\nexport SOLVER=/opt/solver\\nexec su app -c \\"$@\\"; chown app /data\\n' >/opt/solver/entry \
 && chmod 755 /opt/solver/entry
VOLUME /data
ENV PATH=/opt/private:$PATH HYDRA_LAUNCHER=slurm
ENTRYPOINT ["/opt/solver/entry"]
"""


OPEN_MPI = ("Open MPI", "4", "/usr/bin/mpirun.openmpi")
MPI = {
    "shell:12": set(),
    "openfoam:1912": {OPEN_MPI},
    "mpihello:1": {
        OPEN_MPI,
        ("Open MPI", "5", "/opt/openmpi/bin/mpirun"),
        ("MPICH", "5", "/opt/mpich/bin/mpiexec.hydra"),
    },
}


def check(docker: Docker, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from dockerjob.cli import main; main()"
    argv = [sys.executable, "-c", program, "images", "check", "--docker-host", docker.host, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)


def facts(docker: Docker, image: str) -> dict[str, Any]:
    done = check(docker, "--json", image)
    assert done.returncode in (0, 1), done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def problems(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(one["level"], one["name"]) for one in document["findings"] if one["level"] != "note"}


def left_over(docker: Docker) -> str:
    return docker.run("ps", "--all", "--quiet") + docker.run("volume", "ls", "--quiet")


class Builder:
    """Builds images of a directory, and removes them again."""

    def __init__(self, docker: Docker, log: Path) -> None:
        self.docker = docker
        self.log = log
        self.tags: list[str] = []

    def build(self, context: Path, *arguments: str) -> str:
        tag = f"dockerjob-test/built:{len(self.tags)}"
        self.tags.append(tag)
        options = ("--network=host", "--no-cache", "--force-rm", "--tag", tag, *arguments)
        self.docker.run("build", *options, str(context), log=self.log, timeout=240)
        return tag

    def without_times(self, tag: str, directory: Path) -> str:
        """Return the id of the image when its times are taken out."""
        saved = directory / "saved.tar"
        self.docker.run("save", "--output", str(saved), tag)
        return rewrite(saved, directory / "image.tar")


@pytest.fixture
def builder(image_docker: Docker, tmp_path: Path) -> Iterator[Builder]:
    made, before = Builder(image_docker, tmp_path / "build.log"), untagged(image_docker)
    yield made
    for tag in made.tags:
        if image_docker.image_id(tag):
            image_docker.run("rmi", "--force", tag)
    # Those that were there before are the cache of the project's own builds.
    for image in untagged(image_docker) - before:
        image_docker.run("rmi", "--force", image)


def untagged(docker: Docker) -> set[str]:
    """Images that stages and failed builds left."""
    return set(docker.run("images", "--quiet", "--no-trunc", "--filter", "dangling=true").split())


def test_faults_of_an_image_are_found_and_nothing_is_left(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(FAULTY)
    image = builder.build(tmp_path)
    before = left_over(builder.docker)
    document = facts(builder.docker, image)
    assert left_over(builder.docker) == before
    assert problems(document) == {
        ("error", "etcd client"),  # said by the layer's own check, inside
        ("error", "any user"),  # PATH
        ("warning", "any user"),
        ("warning", "setuid"),
        ("warning", "capabilities"),
        ("warning", "writable"),
        ("warning", "volumes"),
        ("warning", "mpi settings"),
        ("warning", "entry point"),
    }
    texts = " ".join(one["text"] for one in document["findings"])
    for path in (
        "/opt/solver/bin/helper",
        "/opt/solver/bin/probe",
        "/opt/scratch",
        "/opt/private",
        "/opt/solver/entry",
    ):
        assert path in texts
    assert any("FROM" not in layer["created_by"] and layer["size"] > 0 for layer in document["layers"])


def test_a_label_alone_is_no_layer(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text('FROM base:12\nLABEL dockerjob.infra="1"\n')
    document = facts(builder.docker, builder.build(tmp_path))
    assert problems(document) == {("error", "infrastructure")}
    assert document["findings"][0]["text"].startswith("its Python does not start: ")


@pytest.mark.parametrize(
    "image",
    [
        "base:12",
        "foreign:minimal",
        "foreign:glibc",
        "foreign:musl",
        "shell:12",
        "mpihello:1",
        "openfoam:1912",
    ],
)
def test_the_project_s_images_have_nothing_wrong(image_docker: Docker, image: str) -> None:
    document = facts(image_docker, image)
    assert problems(document) == set()
    # Packages that were installed on top of the base don't stay as files.
    assert not [one for one in document["findings"] if one["name"] == "package cache"]
    assert sum(layer["size"] for layer in document["layers"]) == document["size"]
    mpi = {(one["family"], one["version"].split(".")[0], one["launcher"]) for one in document["mpi"]}
    assert mpi == MPI.get(image, set())
    assert all(one["in_path"] for one in document["mpi"])


def test_exit_status_tells_a_bad_image_from_one_that_could_not_be_checked(image_docker: Docker) -> None:
    done = check(image_docker, "base:12")
    assert (done.returncode, done.stderr) == (0, "")
    assert "infrastructure: the image has no layer of it: its containers get the hosts' own" in done.stdout
    done = check(image_docker, "no-such-image:1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "dockerjob: no-such-image:1: the image is not on this host; see 'docker image ls'\n"
    done = check(Docker("unix:///run/no-such-daemon.sock"), "base:12")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dockerjob: base:12: docker: ")


def test_template_of_debian_packages(builder: Builder, tmp_path: Path) -> None:
    """It refuses a package without version; twice the same packages are the same image."""
    context = Path(shutil.copytree(TEMPLATES / "debian", tmp_path / "context"))
    (context / "packages.txt").write_text("# a comment\nhello\n")
    with pytest.raises(BuildError, match=r"packages\.txt: hello has no version"):
        builder.build(context, "--build-arg", "BASE_IMAGE=base:12")
    (context / "packages.txt").write_text(f"# a comment\n{PACKAGE}  # another\n")
    images = [builder.build(context, "--build-arg", "BASE_IMAGE=base:12") for _ in range(2)]
    assert problems(facts(builder.docker, images[0])) == set()
    assert as_user(builder.docker, images[0], "hello") == "Hello, world!\n"
    assert builder.docker.image_id(images[0]) != builder.docker.image_id(images[1])
    ids = without_times_in_docker(builder, images, tmp_path)
    assert ids[0] == ids[1]


def as_user(docker: Docker, image: str, command: str) -> str:
    """Run a command in the image as a user that it doesn't know."""
    return docker.run("run", "--rm", "--network", "none", "--user", "4711", image, "sh", "-c", command)


def without_times_in_docker(builder: Builder, images: list[str], directory: Path) -> list[str]:
    """Ids of the images without their times; the last one is loaded, and Docker must say the same."""
    ids = [builder.without_times(image, directory) for image in images]
    builder.docker.run("load", "--input", str(directory / "image.tar"))
    assert builder.docker.image_id(images[-1]) == ids[-1]
    return ids


def vendors_tarball(path: Path) -> str:
    """Write what vendors pack: owned by them, closed to others, a set-uid helper; return its digest."""
    with tarfile.open(path, "w:gz") as tar:
        for name, mode, text in (
            ("solver-7.1/bin/solver", 0o700, b"#!/bin/sh\necho solved\n"),
            ("solver-7.1/bin/helper", 0o4777, b"#!/bin/sh\n"),
            ("solver-7.1/share/data", 0o600, b"1 2 3\n"),
        ):
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.gid, info.size = mode, 31337, 31337, len(text)
            tar.addfile(info, io.BytesIO(text))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_template_of_a_vendor_s_tarball(builder: Builder, tmp_path: Path) -> None:
    """A wrong digest is refused; any user can run it; twice the same tarball is the same image."""
    context = Path(shutil.copytree(TEMPLATES / "vendor", tmp_path / "context"))
    digest = vendors_tarball(context / "solver.tgz")
    arguments = ("--build-arg", "BASE_IMAGE=base:12", "--build-arg", "TARBALL=solver.tgz", "--build-arg")
    with pytest.raises(BuildError, match="1 computed checksum did NOT match"):
        builder.build(context, *arguments, f"SHA256={'0' * 64}")
    with pytest.raises(BuildError, match="give the digest"):
        builder.build(context, *arguments, "SHA256=")
    images = [builder.build(context, *arguments, f"SHA256={digest}") for _ in range(2)]
    document = facts(builder.docker, images[0])
    assert problems(document) == set()
    assert not [one for one in document["findings"] if one["name"] == "owners"]
    command = "solver && cat /opt/application/share/data"
    assert as_user(builder.docker, images[0], command) == "solved\n1 2 3\n"
    ids = without_times_in_docker(builder, images, tmp_path)
    assert ids[0] == ids[1]


def test_a_bootstrapped_base_has_the_same_id_twice(image_docker: Docker, tmp_path: Path) -> None:
    """With mmdebstrap as for the base image, but for fewer packages."""
    small = tuple("--variant=extract" if part == "--variant=minbase" else part for part in MMDEBSTRAP)
    command = (*small[:-2], "--include=hello", *small[-2:])
    digests = set()
    for attempt in range(2):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        archive = bootstrap(image_docker, command, "dockerjob-test/small:1", 'CMD ["hello"]', directory)
        digests.add(hashlib.sha256(archive.read_bytes()).hexdigest())
    assert len(digests) == 1
    assert image_docker.image_id("dockerjob-test/small:1") is None
