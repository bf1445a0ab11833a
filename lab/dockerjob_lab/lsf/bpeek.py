# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``bpeek``: shows what a job that runs has written so far."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import LsfError, view


def main() -> int:
    """Show the output of one's newest job, or of the one that is named."""
    return view.command(_main, "bpeek")


def _main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bpeek", allow_abbrev=False)
    parser.add_argument("-f", dest="follow", action="store_true", help="go on as the job writes")
    parser.add_argument("job", nargs="?", metavar="JOB")
    arguments = parser.parse_args(argv)
    out, err = _spooled(_job(arguments.job))
    print("<< output from stdout >>", flush=True)
    if arguments.follow:
        os.execvp("tail", ["tail", "-n", "+1", "-f", str(out)])  # noqa: S606  # no shell is meant
    sys.stdout.buffer.write(out.read_bytes())
    sys.stdout.flush()
    if err.exists():
        print("<< output from stderr >>", flush=True)
        sys.stdout.buffer.write(err.read_bytes())
    return 0


def _job(label: str | None) -> view.Seen:
    found = (
        view.named(label)
        if label
        else [seen for seen in view.front() if seen.user == view.me() and not seen.finished]
    )
    if not found:
        raise LsfError(f"Job <{label}> is not found" if label else "No unfinished job found")
    if found[-1].user != view.me() and os.getuid():
        raise LsfError(f"Job <{found[-1].label}>: User permission denied")
    return found[-1]


def _spooled(seen: view.Seen) -> tuple[Path, Path]:
    if seen.finished:
        raise LsfError(f"Job <{seen.label}> : Job has already finished; its output is in its output file")
    begun = seen.record.begun(seen.index)
    out = Path(f"{begun['job_file']}.out") if begun else None
    if out is None or not out.exists():
        interactive = seen.options is not None and seen.options.interactive
        raise LsfError(
            f"Job <{seen.label}> : " + ("Job is interactive" if interactive else "Not yet started.")
        )
    return out, out.with_suffix(".err")
