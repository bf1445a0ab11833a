# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which infrastructure a node has, and what the host's does to its container."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from dockerjob_core import infra, names
from dockerjob_core.container import ContainerSpec, Image, Mount, payload, without_volumes
from dockerjob_core.errors import HostError

SPEC = ContainerSpec(
    job_id="748",
    node_index=0,
    image="vendor:1",
    uid=1000,
    gid=1000,
    mounts=(Mount("/scratch", "/scratch"), Mount("/j/ro/passwd", "/etc/passwd", read_only=True)),
)
PLAIN = Image({}, {"PATH": "/bin"})
WITH_LAYER = Image({"dockerjob.infra": "1"}, {})
VERSION = "/opt/dockerjob-infra/0123"


@pytest.mark.parametrize(
    ("choice", "image", "host_has_it", "injected"),
    [
        ("auto", PLAIN, True, True),
        ("auto", WITH_LAYER, True, True),
        ("auto", WITH_LAYER, False, False),
        ("injected", WITH_LAYER, True, True),
        ("image", WITH_LAYER, True, False),
        ("image", PLAIN, False, False),
    ],
)
def test_choice(choice: infra.Infra, image: Image, host_has_it: bool, injected: bool, tmp_path: Path) -> None:
    if host_has_it:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/dockerjob-agent").touch()
    assert infra.directory_to_mount(choice, image, str(tmp_path)) == (str(tmp_path) if injected else None)


@pytest.mark.parametrize(
    ("choice", "image"), [("auto", PLAIN), ("injected", PLAIN), ("injected", WITH_LAYER)]
)
def test_choice_that_the_host_can_not_meet(choice: infra.Infra, image: Image, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cluster_setup\.yml --tags infra"):
        infra.directory_to_mount(choice, image, str(tmp_path))


def test_it_is_mounted_read_only_where_the_layer_would_be() -> None:
    mounts = infra.injected(SPEC, PLAIN, VERSION).mounts
    assert mounts[-1] == Mount(VERSION, "/opt/dockerjob", read_only=True)
    assert mounts[:2] == SPEC.mounts


def test_an_overlay_takes_the_place_of_another() -> None:
    stand_in = Mount("/j/ro/passwd_injected", "/etc/passwd", read_only=True)
    mounts = infra.injected(SPEC, PLAIN, VERSION, (stand_in,)).mounts
    assert [mount for mount in mounts if mount.target == "/etc/passwd"] == [stand_in]


def test_a_volume_of_the_image_is_a_temporary_directory_or_a_mount_or_refused() -> None:
    """Docker would have it on the host's disk, without a limit; and below a mount root would make its mount point."""
    spec = replace(SPEC, mounts=(Mount("/scratch", "/scratch"), Mount("/home", "/home")))
    made = without_volumes(spec, Image({}, {}, ("/data/", "/scratch", "/tmp")))
    assert made.temporary == ("/data", "/tmp")
    assert set(payload(made)["HostConfig"]["Tmpfs"]) == {"/data", "/tmp", "/var/tmp"}
    with pytest.raises(HostError, match="VOLUME /home/bob, and /home is the hosts'"):
        without_volumes(spec, Image({}, {}, ("/home/bob",)))


def test_what_would_mislead_our_programs_is_kept_for_command() -> None:
    """PID 1 doesn't have it, COMMAND gets it by its own name; see the agent's ``job_environment``."""
    variables = {"PATH": "/bin", "LD_PRELOAD": "/opt/hooks.so", "PYTHONHOME": "/opt/python"}
    made = infra.injected(SPEC, Image({}, variables), VERSION)
    given = [entry for entry in payload(made)["Env"] if "PRELOAD" in entry or "PYTHON" in entry]
    assert given == ["DOCKERJOB_IMAGE_LD_PRELOAD=/opt/hooks.so", "LD_PRELOAD"]


def test_the_version_is_told_and_not_the_link(tmp_path: Path) -> None:
    (tmp_path / "0123/bin").mkdir(parents=True)
    (tmp_path / "0123/bin/dockerjob-agent").touch()
    (tmp_path / "current").symlink_to("0123")
    assert infra.directory_on_host(str(tmp_path / "current")) == str(tmp_path / "0123")
    with pytest.raises(HostError, match=r"cluster_setup\.yml --tags infra"):
        infra.directory_on_host(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("shell", "name"),
    [
        ("/bin/bash", "bash"),
        ("/usr/bin/zsh", "zsh"),
        ("/opt/site/bin/nushell", "sh"),
        ("/bin/../x", "sh"),
        ("", "sh"),
    ],
)
def test_a_login_shell_has_a_name_that_mpi_knows(shell: str, name: str) -> None:
    assert names.login_shell(shell) == f"/opt/dockerjob/shells/{name}"
