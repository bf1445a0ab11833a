# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts the lab's LSF where all its hosts find it: ``/share/lsf``. The one file here that hosts don't use."""

from __future__ import annotations

import os
from pathlib import Path

from ..inventory import SITE
from ..model import REPOSITORY
from ..system import write_if_changed

INTEGRATION = REPOSITORY / "integration/lsf"
COMMANDS = {
    "bsub": "bsub",
    "bjobs": "bjobs",
    "bkill": "control:bkill",
    "bstop": "control:bstop",
    "bresume": "control:bresume",
    "bpeek": "bpeek",
    "bpost": "bpost",
    "bhosts": "lists:bhosts",
    "bqueues": "lists:bqueues",
    "lshosts": "lists:lshosts",
}
"""What users type, and the module and function that it is."""

HELPERS = {"res": "res", "start": "start", "after": "start:after", "esubs": "site"}
MESSENGER = "dockerjob"
"""The account that writes what ``bpost`` keeps; in LSF a daemon would."""

LAUNCHER = """\
#!/usr/bin/python3 -IB
# One of the commands of the lab's LSF; docs/lab.md says more.
import sys

sys.path.insert(0, "/share/lsf/lib")
from dockerjob_lab.lsf.{module} import {function}

sys.exit({function}())
"""


def applications() -> str:
    """The text of the site's ``lsb.applications``; an admin writes the path of his own installation."""
    text = (INTEGRATION / "lsb.applications").read_text()
    return text.replace("/opt/dockerjob", str(SITE["submit_host_install_root"]))


def install(share: Path) -> None:
    """Write all that the hosts need to *share*, the lab's ``/share`` as it is seen from here."""
    root, here = share / "lsf", Path(__file__).parent
    for directory, programs in (("bin", COMMANDS), ("libexec", HELPERS)):
        for name, where in programs.items():
            module, _, function = where.partition(":")
            text = LAUNCHER.format(module=module, function=function or "main")
            write_if_changed(root / directory / name, text, mode=0o755)
    write_if_changed(root / "lib/dockerjob_lab/__init__.py", (here.parent / "__init__.py").read_text())
    for path in sorted(here.glob("*.py")):
        if path.name != "programs.py":
            write_if_changed(root / "lib/dockerjob_lab/lsf" / path.name, path.read_text())
    write_if_changed(root / "conf/lsb.applications", applications())
    write_if_changed(root / "etc/esub.docker", (INTEGRATION / "esub.docker").read_text(), mode=0o755)
    _spools(root)


def _spools(root: Path) -> None:
    spool, messages = root / "spool", root / "messages"
    spool.mkdir(exist_ok=True)
    spool.chmod(0o1777)
    messages.mkdir(exist_ok=True)
    messages.chmod(0o755)
    accounts = root.parent.parent / "etc/passwd"
    for line in accounts.read_text().splitlines() if accounts.exists() else ():
        if line.startswith(f"{MESSENGER}:"):
            os.chown(messages, int(line.split(":")[2]), 0)
