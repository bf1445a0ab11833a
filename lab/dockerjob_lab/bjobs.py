#!/usr/bin/python3 -I
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``bjobs`` of the lab: answers about the jobs that the lab has started, in LSF's JSON form.

Runs on the lab's hosts. Like LSF's when it is busy, it prints a line of chatter first.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

JOBS = Path(__file__).resolve().parents[1] / "jobs"
WHICH = re.compile(r"(\d{1,18})(?:\[(\d{1,18})\])?")


def main() -> int:
    """Print the record of one job; exit status 255 if there is none, as LSF has it."""
    parser = argparse.ArgumentParser(prog="bjobs")
    parser.add_argument("-a", action="store_true")
    parser.add_argument("-X", action="store_true")
    parser.add_argument("-o", dest="fields", required=True)
    parser.add_argument("-json", action="store_true", required=True)
    parser.add_argument("job")
    arguments = parser.parse_args()
    which = WHICH.fullmatch(arguments.job)
    fields = [field.upper() for field in arguments.fields.split()]
    print("LSF is processing your request. Please wait ...")
    try:
        record = json.loads((JOBS / f"{which[1]}_{which[2] or 0}.json").read_text()) if which else None
    except FileNotFoundError:
        record = None
    if record:
        record.setdefault("RUN_TIME", f"{time.time() - record['BEGIN']:.0f} second(s)")
        records = [{field: record.get(field, "") for field in fields}]
    else:
        records = [{"JOBID": arguments.job, "ERROR": f"Job <{arguments.job}> is not found"}]
    # LSF writes a slash as \/, which JSON allows.
    print(json.dumps({"COMMAND": "bjobs", "JOBS": 1, "RECORDS": records}, indent=2).replace("/", "\\/"))
    return 0 if record else 255


if __name__ == "__main__":
    sys.exit(main())
