# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts lack the image: the broker asks the guards, and keeps their other words for who waits for them."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from dockerjob.broker import connections
from dockerjob.broker.connections import Connections
from dockerjob.config import load_config
from test_config import GOOD, write

HOSTS = ("lacks", "has", "silent", "frozen", "bare", "dies")
SSH = """#!{python}
import json, os, sys
def say(word):
    os.write(1, json.dumps(word).encode() + b"\\n")  # whole, as a guard does
host = next(word for word in sys.argv if word.startswith("root@")).partition("@")[2]
if host == "bare":
    os.write(1, b"none\\n")
    sys.stdin.read()
    sys.exit()
say({{"ready": True}})
for line in sys.stdin:
    command = json.loads(line)
    if "image" in command and host == "dies":
        sys.exit()
    if "image" in command and host != "silent":
        if host == "frozen":
            say({{"suspended": True}})
        say({{"lacks": host in ("lacks", "frozen")}})
    if "end" in command:
        break
"""


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Connections:
    """Connections to guards that answer in all ways there are."""
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH.format(python=sys.executable))
    ssh.chmod(0o755)
    monkeypatch.setattr(connections, "SSH", str(ssh))
    monkeypatch.setattr(connections, "IMAGE_PATIENCE", 3.0)
    monkeypatch.setattr(connections, "GOODBYE", 0.1)
    hosts = ", ".join(f"{host}: {{address: {host}}}" for host in HOSTS)
    config = load_config(write(tmp_path, GOOD.replace("node1: {address: 192.0.2.1}", hosts)))
    return Connections(config, HOSTS, tmp_path / "sockets")


def test_only_hosts_whose_guards_say_so_lack_the_image(opened: Connections) -> None:
    opened.open()
    try:
        assert opened.lacking() == []  # nobody was asked
        opened.ask_for_image("r:5000/a@sha256:0")
        assert opened.lacking() == ["lacks", "frozen"]
        suspended: list[bool] = []
        opened.watch({}, lambda host, there: None, suspended.append)
        for _ in range(100):
            if suspended:
                break
            time.sleep(0.05)
        assert suspended == [True]
    finally:
        opened.close()
