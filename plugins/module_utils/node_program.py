# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``hpc.dockerjob.job_node`` as a program that is installed on the hosts.

A module that Ansible sends costs half a second per task before its first line: Ansible
packs it with all it imports, and the host unpacks and compiles that.  So the role
``job_host`` installs these same files on the hosts, and the action ``job_node`` calls
them there.  The directory's name is made from their contents: another version of the
collection never runs a program that is not its own.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

ROOT = "/usr/local/libexec/dockerjob"


def directory() -> str:
    """Return where a host has the program that belongs to these files.

    The role ``job_host`` computes the same name, see its ``vars/main.yml``.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    checksums = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in sources)
    return f"{ROOT}/{hashlib.sha256(checksums.encode()).hexdigest()[:16]}"


def main() -> None:
    """Read ``{"options": …, "check_mode": …}`` from standard input, write the result as JSON.

    With the argument ``guard``: be the job's guard on this host, see :mod:`.guard`.  With ``check``
    and the name of the bridge: say how the host is, see :mod:`.host_check`.  With ``release``, a job's id,
    the name of the bridge and perhaps a number of seconds: see :mod:`.release`.  With ``pull`` or ``prune``
    and their arguments: see :mod:`.images`.
    """
    if sys.argv[1:] == ["guard"]:
        from .guard import Guard

        Guard(sys.stdin.fileno(), sys.stdout.fileno()).run()
        return
    if sys.argv[1:2] == ["check"]:
        from .host_check import facts

        json.dump(facts(*sys.argv[2:3]), sys.stdout)
        return
    if sys.argv[1:2] == ["release"]:
        from .release import release

        job_id, bridge, *patience = sys.argv[2:]
        # sys.exit takes a text for a failure, and prints it.
        sys.exit(release(job_id, bridge, *map(float, patience)) or 0)
    if sys.argv[1:2] in (["pull"], ["prune"]):
        from .images import prune, pull

        sys.exit(pull(*sys.argv[2:]) if sys.argv[1] == "pull" else prune(*sys.argv[2:]))
    from .standby import hand_over

    task = json.load(sys.stdin)
    result = hand_over(task)
    if result is None:
        from .node_task import perform

        result = perform(task["options"], check_mode=task["check_mode"])
    json.dump(result, sys.stdout)
