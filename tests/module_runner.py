# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs modules on the private host: one line of JSON in, one line out, a fork for each.

Imports are done once, before the forks, which spares each run half a second.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from typing import Any

import docker  # noqa: F401  the modules import it late, which would be once per fork
from ansible.module_utils.testing import patch_module_args

MODULES = "ansible_collections.hpc.dockerjob.plugins.modules"
NAMES = ("job_node", "ovs_bridge", "ovs_bridge_info", "ovs_docker_port")


def run(name: str, arguments: dict[str, Any]) -> str:
    """Run a module's ``main`` in a child; return what it prints."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(writing, 1)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb"), write_through=True)
        with patch_module_args(arguments):
            importlib.import_module(f"{MODULES}.{name}").main()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as output:
        text = output.read()
    os.waitpid(child, 0)
    return text


def main() -> None:
    """Serve until stdin ends."""
    for name in NAMES:
        importlib.import_module(f"{MODULES}.{name}")
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(run(request["module"], request["arguments"])), flush=True)


if __name__ == "__main__":
    main()
