# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names in a registry, the time and the progress of pulls; ``tests/integration/test_registry.py`` has the registry."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dockerjob.broker.pulls import Pulls, pull_limit
from dockerjob.config import Config, RegistrySettings, load_config
from dockerjob.registry import NAME_TAG, reference
from dockerjob_core.errors import ConfigError
from dockerjob_core.images import Progress, lacks
from test_config import GOOD, write

REGISTRY = "registry: {address: 'r:5000', ca: /c, password_file: /p, pulls: 2}\n"
DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a:",
        "A:1",
        "a/../b:1",
        "/a:1",
        "a:1/..",
        "a b:1",
        "a:1\n",
        "a@sha256:00",
        "a?x:1",
        "http://a:1",
        "a:" + "1" * 129,
    ],
)
def test_what_is_no_name_with_a_tag_never_gets_into_an_address(text: str) -> None:
    assert not NAME_TAG.fullmatch(text)


@pytest.mark.parametrize("text", ["openfoam:1912", "team/tool:v2.0_x-1", "a__b.c-d/e:1", f"a@{DIGEST}"])
def test_names_of_all_forms_are_taken(text: str) -> None:
    assert NAME_TAG.fullmatch(text)


def test_a_reference_names_registry_and_digest_but_no_tag() -> None:
    settings = RegistrySettings.model_validate({"address": "r:5000", "ca": "/c", "password_file": "/p"})
    assert reference(settings, "team/tool:2", DIGEST) == f"r:5000/team/tool@{DIGEST}"


@pytest.mark.parametrize(("hosts", "seconds"), [(1, 100), (2, 200), (8, 400), (1024, 1100)])
def test_the_time_for_a_pull_grows_with_each_doubling(hosts: int, seconds: float) -> None:
    assert pull_limit(100, hosts) == seconds


def test_with_a_registry_tags_are_fine_since_a_job_pins_them(tmp_path: Path) -> None:
    tagged = GOOD.replace("sha256:%s" % ("0" * 64), "openfoam:1912")
    config = load_config(write(tmp_path, tagged + REGISTRY))
    assert config.registry
    assert config.applications["openfoam:1912"].image == "openfoam:1912"
    with pytest.raises(ConfigError, match="no image id"):
        load_config(write(tmp_path, tagged))


@pytest.mark.parametrize("address", ["", "r:", "r:port", "https://r", "r/path", "r;id", "-r"])
def test_an_address_is_nothing_else(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match=r"registry\.address"):
        load_config(write(tmp_path, GOOD + REGISTRY.replace("r:5000", address)))


def test_progress_is_half_transfer_half_unpacking() -> None:
    progress = Progress()
    assert progress.percent == 0
    steps: list[tuple[dict[str, Any], int]] = [
        ({"id": "a", "status": "Downloading", "progressDetail": {"current": 50, "total": 100}}, 25),
        ({"id": "b", "status": "Downloading", "progressDetail": {"current": 0, "total": 100}}, 12),
        ({"id": "a", "status": "Download complete"}, 25),
        ({"id": "a", "status": "Extracting", "progressDetail": {"current": 100, "total": 100}}, 50),
        ({"id": "a", "status": "Pull complete"}, 50),
        ({"status": "Digest: sha256:0"}, 50),
        ({"id": "b", "status": "Pull complete"}, 99),
    ]
    for event, percent in steps:
        progress.take(event)
        assert progress.percent == percent, event


@pytest.fixture
def daemon(tmp_path: Path) -> Callable[[bytes], str]:
    """A socket that answers once with a line, as the Docker daemon's API does."""

    def listen(answer: bytes) -> str:
        path = str(tmp_path / "docker.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, listener:
                if connection.recv(4096).startswith(b"GET /images/a:1/json HTTP/1.0\r\n"):
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return f"unix://{path}"

    return listen


@pytest.mark.parametrize(
    ("answer", "lacking"),
    [
        (b"HTTP/1.0 404 Not Found\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\n\r\n404", False),
        (b"HTTP/1.0 500 Oh\r\n\r\n", False),
        (b"", False),
    ],
)
def test_only_a_daemon_that_says_so_lacks_an_image(
    daemon: Callable[[bytes], str], answer: bytes, lacking: bool
) -> None:
    assert lacks("a:1", daemon(answer)) is lacking


def test_a_daemon_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert lacks("a:1", f"unix://{tmp_path}/none") is False


SCRIPT = """
import json, sys, time
host = sys.argv[1]
if host == "full":
    print(json.dumps({"error": "no space left on device"})); sys.exit(1)
if host == "gone":
    print("ssh: no route to host", file=sys.stderr); sys.exit(255)
print(json.dumps({"percent": 43}), flush=True)
if host == "slow":
    time.sleep(60)
"""


def pulls(tmp_path: Path) -> Pulls:
    config: Config = load_config(write(tmp_path, GOOD + REGISTRY))
    return Pulls(config, f"r:5000/a@{DIGEST}", 4, lambda host, *_: [sys.executable, "-c", SCRIPT, host])


def test_hosts_that_can_not_pull_say_why(tmp_path: Path) -> None:
    told: list[str] = []
    failed = pulls(tmp_path).run(["full", "good", "gone"], lambda: None, told.append)
    assert failed == {"full": "no space left on device", "gone": "ssh: no route to host"}
    assert told[0].startswith("1 of 4 hosts have the image; pulling on ")
    assert told[-1] == "2 of 4 hosts have the image"


def test_a_job_that_ends_ends_its_pulls(tmp_path: Path) -> None:
    asked = 0

    def ended() -> None:
        nonlocal asked
        asked += 1
        if asked > 3:
            raise ConfigError("the job has ended")

    with pytest.raises(ConfigError, match="has ended"):
        pulls(tmp_path).run(["slow", "slow2", "third"], ended, lambda _: None)
