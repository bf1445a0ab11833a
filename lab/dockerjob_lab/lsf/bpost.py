# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``bpost`` of the lab: keeps messages of jobs, from the account that a site would make an administrator of LSF's.

Runs on the lab's hosts.
"""

from __future__ import annotations

import argparse
import os
import pwd
import re
import sys

from .spool import ROOT

MESSAGES = ROOT / "messages"
ADMINISTRATOR = "dockerjob"
MOST = 512


def main() -> int:
    """Add a line to the messages of one job; exit status 255 if that may not be, as LSF has it."""
    parser = argparse.ArgumentParser(prog="bpost")
    parser.add_argument("-d", dest="text", required=True)
    parser.add_argument("job")
    arguments = parser.parse_args()
    if pwd.getpwuid(os.getuid()).pw_name != ADMINISTRATOR:
        print(f"Job <{arguments.job}>: User permission denied", file=sys.stderr)
        return 255
    if len(arguments.text) > MOST or not re.fullmatch(r"\d{1,18}(\[\d{1,18}\])?", arguments.job):
        print("Bad argument", file=sys.stderr)
        return 255
    with (MESSAGES / arguments.job).open("a", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)  # for bjobs -l of whoever it is
        file.write(arguments.text + "\n")
    print(f"Message to job {arguments.job} is posted.")
    return 0
