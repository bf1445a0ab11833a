# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``bjobs``: shows jobs, and answers the broker in LSF's JSON form."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

from . import LsfError, report, table, view
from .spool import ROOT

COLUMNS = (
    ("JOBID", 7),
    ("USER", 7),
    ("STAT", 5),
    ("QUEUE", 10),
    ("FROM_HOST", 11),
    ("EXEC_HOST", 11),
    ("JOB_NAME", 10),
)
NOT_FOUND = "Job <{}> is not found"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LsfError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bjobs", allow_abbrev=False)
    parser.add_argument("-a", action="store_true", help="finished jobs, too")
    parser.add_argument("-d", action="store_true", help="finished jobs only")
    parser.add_argument("-w", action="store_true", help="cut nothing off")
    parser.add_argument("-l", action="store_true", help="all about each job")
    parser.add_argument("-u", dest="user", help="whose jobs; all is everybody's")
    parser.add_argument("-X", action="store_true", help="names of hosts, which is all there are here")
    parser.add_argument("-o", dest="fields", help="these fields")
    parser.add_argument("-json", action="store_true", help="as JSON; needs -o")
    parser.add_argument("-noheader", action="store_true")
    parser.add_argument("jobs", nargs="*", metavar="JOB")
    return parser


def main() -> int:
    """Show jobs."""
    return view.command(_main, "bjobs")


def _main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.json:
        if not arguments.fields:
            raise LsfError("-json needs -o")
        return _answer(arguments.fields, arguments.jobs)
    found = _wanted(arguments)
    if arguments.fields:
        _print_fields(found, arguments.fields, header=not arguments.noheader)
    elif arguments.l:
        print("\n".join(map(long_form, found)))
    elif found:
        print("\n".join(rows(found, wide=arguments.w)))
    return 0 if found else 255


def _wanted(arguments: argparse.Namespace) -> list[view.Seen]:
    """The jobs that are asked for; says so where there is none."""
    if arguments.jobs:
        found = []
        for label in arguments.jobs:
            these = view.named(label)
            found += these
            if not these:
                print(NOT_FOUND.format(label), flush=True)
        return found
    user = arguments.user or view.me()
    since = time.time() - view.CLEAN_PERIOD
    found = [
        seen
        for seen in view.everything()
        if user in ("all", seen.user)
        and (arguments.a or arguments.d or not seen.finished)
        and (seen.finished or not arguments.d)
        and (seen.end is None or seen.end.ended > since)
    ]
    if not found:
        raise LsfError(
            "No job found"
            if arguments.a
            else "No DONE/EXIT job found"
            if arguments.d
            else "No unfinished job found"
        )
    return found


def _answer(fields: str, labels: Sequence[str]) -> int:
    """Print LSF's JSON document; exit status 255 if there is no such job.

    Like LSF's bjobs when that is busy, it prints a line of chatter first.
    """
    print("LSF is processing your request. Please wait ...")
    records: list[dict[str, str]] = []
    status = 0
    for label in labels:
        found = list(_by_label(label))
        records += [{name: each.get(name, "") for name in fields.upper().split()} for each in found]
        if not found:
            records.append({"JOBID": label, "ERROR": NOT_FOUND.format(label)})
            status = 255
    # LSF writes a slash as \/, which JSON allows.
    document = {"COMMAND": "bjobs", "JOBS": len(records), "RECORDS": records}
    print(json.dumps(document, indent=2).replace("/", "\\/"))
    return status


def _by_label(label: str) -> list[Mapping[str, str]]:
    """What the lab has recorded itself, else what Slurm says."""
    number, indices = view.parse_label(label)
    if len(indices) < 2 and (told := table.find(number, min(indices, default=0))):
        told.setdefault("RUN_TIME", f"{time.time() - told['BEGIN']:.0f} second(s)")
        return [{name: str(value) for name, value in told.items()}]
    return [seen.fields() for seen in view.named(label)]


def _print_fields(found: Sequence[view.Seen], text: str, *, header: bool) -> None:
    delimiter = re.search(r"delimiter=['\"]?(.)['\"]?", text)
    names = re.sub(r"delimiter=\S+", "", text).upper().split()
    lines = [[seen.fields().get(name, "") or "-" for name in names] for seen in found]
    for line in [names, *lines] if header else lines:
        print((delimiter[1] if delimiter else " ").join(line))


def _cut(text: str, width: int) -> str:
    """*text* in *width* characters; of a long one, LSF shows the end after a star."""
    text = " ".join(text.split())
    return text if len(text) <= width else f"*{text[-(width - 1) :]}"


def rows(found: Sequence[view.Seen], *, wide: bool) -> list[str]:
    """The list of bjobs; without *wide* each host has a line, and long texts are cut off."""
    header = "".join(f"{name:<{width + 1}}" for name, width in COLUMNS)
    lines = [f"{header}SUBMIT_TIME"]
    for seen in found:
        hosts = [f"{slots}*{host}" if slots > 1 else host for host, slots in seen.hosts]
        shown = [":".join(hosts)] if wide else hosts[:1]
        texts = (
            str(seen.number),
            seen.user,
            seen.state,
            seen.queue,
            seen.from_host,
            *(shown or [""]),
            seen.name,
        )
        cells = zip(texts, COLUMNS, strict=True)
        lines.append(
            "".join(
                f"{text if wide else _cut(text, width):<{width}} " for text, (_, width) in cells
            ) + view.moment(seen.submitted)
        )  # fmt: skip
        if not wide:
            lines += [f"{'':45}{_cut(host, 11)}" for host in hosts[1:]]
    return lines


def long_form(seen: view.Seen) -> str:
    """All about a job, as ``bjobs -l`` has it."""
    options, fields = seen.options, seen.fields()
    wanted = f", Requested Resources <{options.resources}>" if options and options.resources else ""
    output = f", Output File <{options.output}>" if options and options.output else ""
    parts = [
        f"\nJob <{seen.label}>, Job Name <{seen.name}>, User <{seen.user}>, Project <{fields['PROJ_NAME']}>, "
        f"Status <{seen.state}>, Queue <{seen.queue}>, Command <{fields['COMMAND']}>",
        f"{time.ctime(seen.submitted)}: Submitted from host <{seen.from_host}>, CWD <{fields['SUB_CWD']}>"
        f"{output}, {fields['SLOTS']} Task(s){wanted};",
    ]
    if fields["RUNTIMELIMIT"]:
        parts.append(f"\n RUNLIMIT\n {fields['RUNTIMELIMIT']} min\n")
    if seen.began is not None:
        hosts = " ".join(f"<{slots}*{host}>" if slots > 1 else f"<{host}>" for host, slots in seen.hosts)
        parts.append(f"{time.ctime(seen.began)}: Started {fields['SLOTS']} Task(s) on Host(s) {hosts};")
    if seen.end:
        parts.append(f"{time.ctime(seen.end.ended)}: {_ending(seen.end)}")
    return "\n".join([*parts, *_messages(seen)])


def _ending(end: report.End) -> str:
    used = "" if end.cpu is None else f" The CPU time used is {end.cpu:.1f} seconds."
    if not end.status:
        return f"Done successfully.{used}"
    reason = (
        f"\n{time.ctime(end.ended)}: Completed <exit>; {end.reason}: {report.REASONS[end.reason]}"
        if end.reason
        else ""
    )
    return f"Exited with exit code {end.status}.{used}{reason}"


def _messages(seen: view.Seen) -> list[str]:
    path = ROOT / "messages" / seen.label
    if not path.exists():
        return []
    when = view.moment(path.stat().st_mtime)
    lines = [
        f" {number:<7}{'dockerjob':<11}{when:<15}{text}"
        for number, text in enumerate(path.read_text().splitlines())
    ]
    return ["\n EXTERNAL MESSAGES:", f" {'MSG_ID':<7}{'FROM':<11}{'POST_TIME':<15}MESSAGE", *lines]
