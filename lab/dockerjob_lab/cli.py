# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Command line of the lab."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys

from . import cluster, host, inventory, submit
from .lsf import LsfError
from .model import DEFAULT_COMPUTE, MAX_COMPUTE, REPOSITORY, Lab, LabError, check_name, existing, recorded
from .system import locked, shorten_time_slice

NEEDED = ("ip", "nsenter", "unshare", "tini", "sshd", "ssh-keygen", "nc")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab.py", description="A cluster of namespaces on this machine. Needs root."
    )
    parser.add_argument(
        "--name", default=os.environ.get("LAB_NAME", "lab"), help="which lab (LAB_NAME; default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="make the lab, or repair it")
    up.add_argument(
        "--compute", type=int, metavar="N", help=f"number of compute hosts (default {DEFAULT_COMPUTE})"
    )
    down = commands.add_parser("down", help="remove the lab and everything in it")
    status = commands.add_parser("status", help="show the lab; exit status 0 if it is up, 3 if not")
    for each in (up, down, status):
        each.add_argument("--json", action="store_true", help="answer in JSON on stdout")
    for each in (up, down):
        each.add_argument("--check", action="store_true", help="change nothing, only tell whether it would")
    execute = commands.add_parser(
        "exec", help="run a command on a host, as root", usage="lab.py exec HOST -- CMD..."
    )
    execute.add_argument("host", metavar="HOST")
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="CMD")
    _add_batch_commands(commands)
    for each in commands.choices.values():
        each.add_argument("--name", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _add_batch_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    job = commands.add_parser("submit", help="run a job script as LSF would; exit status is the job's")
    job.add_argument("script", metavar="SCRIPT", help="script with #BSUB lines; - is stdin")
    job.add_argument("--user", required=True, help="who the job belongs to")
    job.add_argument(
        "--hosts", metavar="H1,H2", help="take these hosts (default: all compute hosts, in order)"
    )
    job.add_argument("--cwd", metavar="DIR", help="where it is submitted from (default: the user's home)")
    job.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="set in the job; may repeat"
    )
    job.add_argument(
        "--number", type=int, help="the job's number, as after a requeue (default: the next one)"
    )
    job.add_argument("--index", type=int, default=0, help="the job's index in an array (default: it is none)")
    job.add_argument(
        "--spool", action="store_true", help="output to the -o and -e files at the end, not here"
    )
    job.add_argument("--pty", action="store_true", help="the job gets this terminal, as with bsub -Is")
    kill = commands.add_parser("kill", help="signal or end a running job, as bkill does")
    kill.add_argument("job", type=int, metavar="JOB")
    kill.add_argument("-s", "--signal", metavar="SIG", help="send only this (default: CONT, INT, TERM, KILL)")


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise LabError("a lab needs root: it makes namespaces, links and mounts")
    missing = [
        program for program in NEEDED if not shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    ]
    if missing:
        raise LabError(f"not installed: {', '.join(missing)}; run lab/bootstrap.sh")


def _wanted_compute(arguments: argparse.Namespace) -> int:
    record = recorded(arguments.name)
    kept = record.compute if record and record.belongs_to(REPOSITORY) else DEFAULT_COMPUTE
    wanted = arguments.compute if arguments.compute is not None else kept
    if not 1 <= wanted <= MAX_COMPUTE:
        raise LabError(f"--compute {wanted}: must be from 1 to {MAX_COMPUTE}")
    return int(wanted)


def _up(arguments: argparse.Namespace) -> int:
    wanted = Lab(arguments.name, _wanted_compute(arguments))
    if arguments.check:
        changed = cluster.would_change(wanted)
    else:
        shorten_time_slice()
        with locked(wanted.lock):
            changed = cluster.up(wanted)
    if arguments.json:
        # Hosts that are not there yet can't be looked at.
        hosts = () if arguments.check and changed else wanted.hosts
        told = [{"name": each.name, "vars": inventory.host_variables(wanted, each)} for each in hosts]
        print(json.dumps({"changed": changed, "inventory": str(wanted.inventory), "hosts": told}))
    elif arguments.check:
        print(f"up would change {'something' if changed else 'nothing'}")
    else:
        what = "" if changed else " (nothing to do)"
        print(f"lab {wanted.name!r} is up{what}; inventory: {wanted.inventory}")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    lab = Lab(arguments.name, 0)
    if arguments.check:
        changed = cluster.status(lab).state != "down"
    else:
        with locked(lab.lock):
            changed = cluster.down(lab)
    if arguments.json:
        print(json.dumps({"changed": changed}))
    elif arguments.check:
        print(f"down would change {'something' if changed else 'nothing'}")
    else:
        print(f"lab {lab.name!r} is gone{'' if changed else ' (nothing to do)'}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    record = recorded(arguments.name)
    found = cluster.status(Lab(arguments.name, record.compute if record else 0))
    if arguments.json:
        print(found.as_json())
    else:
        print(f"lab {found.name!r}: {found.state}; inventory: {found.inventory}")
        for each in found.hosts:
            memory = "" if each.memory_bytes is None else f"{each.memory_bytes / 2**20:6.0f} MiB"
            state = f"init {each.pid}" if each.up else "not up"
            print(f"  {each.name:8} {each.address:12} {state:14} {each.processes:4} processes {memory}")
    return 0 if found.state == "up" else 3


def _exec(arguments: argparse.Namespace) -> int:
    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    host.execute(existing(arguments.name).host_named(arguments.host), argv or ["bash"])
    raise AssertionError("execute does not return")


def _submit(arguments: argparse.Namespace) -> int:
    lab = existing(arguments.name)
    script = submit.read_script(arguments.script)
    extra = dict(pair.partition("=")[::2] for pair in arguments.env)
    job = submit.make_job(
        lab, script, arguments.user, arguments.hosts, arguments.cwd, arguments.number, arguments.index
    )
    return submit.submit(lab, job, script, extra, spool=arguments.spool, terminal=arguments.pty)


def _kill(arguments: argparse.Namespace) -> int:
    cgroup = submit.find(existing(arguments.name), arguments.job)
    if arguments.signal:
        submit.send(cgroup, submit.signal_number(arguments.signal))
    else:
        submit.terminate(cgroup)
    return 0


COMMANDS = {"up": _up, "down": _down, "status": _status, "exec": _exec, "submit": _submit, "kill": _kill}


def main() -> int:
    """Run the command line; the exit status is 1 for an error of the lab."""
    arguments = _parser().parse_args()
    try:
        check_name(arguments.name)
        _check_machine()
        return COMMANDS[arguments.command](arguments)
    except (LabError, LsfError) as error:
        print(f"lab.py: {error}", file=sys.stderr)
        return 1
