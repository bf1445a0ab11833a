# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command ``dockerjob-agent``: ``init``, ``run``, ``terminal`` and ``check``.

Imports happen in the branches: ``init`` must be up before the rest is even read.
"""

from __future__ import annotations

import os
import sys

USAGE = """usage: dockerjob-agent init | run | terminal | check [--json] [--no-application]

  init      PID 1 of a node: prepare keys and services, start supervisord
  run       the agent itself, started by supervisord
  terminal  COMMAND's terminal, started by the broker in node 0 of an interactive job
  check     list what this image lacks to run jobs; exit status 1 if anything does
"""


def main(argv: list[str] | None = None) -> int:
    """Run the given subcommand and return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    match arguments:
        case ["init"]:
            return _init()
        case ["run"]:
            from . import run

            # gRPC's orderly shutdown takes longer than all else at the end of a job.
            os._exit(run.main())
        case ["terminal"]:
            from . import terminal

            return terminal.main()
        case ["check", *options] if set(options) <= {"--json", "--no-application"}:
            from . import check

            return check.main(as_json="--json" in options, application="--no-application" not in options)
        case ["--help" | "-h" | "help"]:
            print(USAGE, end="")
            return 0
        case _:
            print(USAGE, end="", file=sys.stderr)
            return 2


def _init() -> int:
    from dockerjob_core.errors import DockerjobError

    from . import init

    try:
        return init.main()
    except DockerjobError as error:
        print(f"dockerjob-agent: {error}", file=sys.stderr)
        return error.exit_status
