# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all adapters have in common: how each is asked, chosen and configured, and what is written of it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dockerjob.broker import doctor
from dockerjob.config import BatchSettings
from dockerjob.schedulers import (
    array_variables,
    command_environment,
    meaning_of_status,
    message,
    on_compute_hosts,
    prove,
    read_allocation,
)
from dockerjob.submit.cli import FORWARDED, HELP
from dockerjob_core.allocation import Allocation, HostSlots
from dockerjob_core.errors import BatchError, PolicyError, RequestError
from dockerjob_core.schedulers import SYSTEMS
from pydantic import ValidationError

DOCS = Path(__file__).resolve().parents[2] / "docs/batch_systems.md"
HOSTS = (HostSlots("n1", 2), HostSlots("n2", 1))
SLURM_JOB = {"SLURM_JOB_ID": "11", "SLURM_JOB_NODELIST": "n1", "SLURM_TASKS_PER_NODE": "2"}


def program(tmp_path: Path, answers: str) -> str:
    """A program that keeps its arguments and runs *answers*, lines of shell."""
    path = tmp_path / "program"
    path.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/argv\n{answers}')
    path.chmod(0o755)
    return str(path)


def asked(tmp_path: Path) -> list[str]:
    return (tmp_path / "argv").read_text().splitlines()


def test_slurm_is_asked_once_for_fixed_fields(tmp_path: Path) -> None:
    path = program(tmp_path, "echo '11|1000|RUNNING|2|3|1:00:00|n[1-2]'\n")
    settings = BatchSettings.model_validate({"slurm": {"squeue": path}})
    record = prove(settings, Allocation("slurm", 11, None, HOSTS), "alice", 1000)
    assert record.run_limit == 3600
    assert asked(tmp_path) == ["-h --noconvert -t all -o %A|%U|%T|%D|%C|%l|%N -j 11"]


def test_slurm_is_asked_for_limits_where_the_site_says_so(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        'case "$*" in *-O*) echo cpu=3,mem=2048M,node=2;;'
        " *) echo '11|1000|RUNNING|2|3|9:00|n[1-2]|1:00|1024M';; esac\n",
    )
    settings = BatchSettings.model_validate({"slurm": {"squeue": path, "limits": "ask"}})
    record = prove(settings, Allocation("slurm", 11, None, HOSTS), "alice", 1000)
    assert (record.run_time, record.memory_limit, record.memory_per) == (60, 1 << 30, "host")
    assert asked(tmp_path) == [
        "-h --noconvert -t all -o %A|%U|%T|%D|%C|%l|%N|%M|%m -j 11",
        "-h --noconvert -t all -O tres-alloc:1024 -j 11",
    ]


def test_the_site_may_say_what_a_memory_limit_is_for(tmp_path: Path) -> None:
    answer = (
        '{"RECORDS":[{"JOBID":"748","STAT":"RUN","USER":"a","EXEC_HOST":"2*n1:n2","MEMLIMIT":"4 Gbytes"}]}'
    )
    lsf = {"bjobs": program(tmp_path, f"echo '{answer}'\n")}
    job = Allocation("lsf", 748, None, HOSTS)
    for section, expected in (({}, "slot"), ({"memory_per": "host"}, "host")):
        settings = BatchSettings.model_validate({"lsf": {**lsf, **section}})
        assert prove(settings, job, "a", 1000).memory_per == expected


TEXT = "dockerjob: exit status 0; $(id) 'x' \"y\""


@pytest.mark.parametrize(
    ("system", "section", "job", "words"),
    [
        ("lsf", {"bjobs": "/b", "bpost": "bpost"}, Allocation("lsf", 748, 3, HOSTS), ["-d", TEXT, "748[3]"]),
        (
            "slurm",
            {"squeue": "/q", "scontrol": "scontrol"},
            Allocation("slurm", 11, None, HOSTS),
            ["update", "JobId=11", f"AdminComment={TEXT}"],
        ),
    ],
)
def test_a_message_is_one_word_of_a_fixed_command_line(
    tmp_path: Path, system: str, section: dict[str, str], job: Allocation, words: list[str]
) -> None:
    path = program(tmp_path, f"printf '%s\\n' \"$@\" >{tmp_path}/words\n")
    given = {key: path if not value.startswith("/") else value for key, value in section.items()}
    settings = BatchSettings.model_validate({system: given})
    assert message(settings, job, TEXT) == ""
    assert (tmp_path / "words").read_text().splitlines() == words


def test_a_message_that_is_not_taken_is_said_and_no_error(tmp_path: Path) -> None:
    job = Allocation("lsf", 748, None, HOSTS)
    for lines, expected in (
        (
            "echo Job 748: Permission denied >&2; exit 255\n",
            "bpost ended with 255: Job 748: Permission denied",
        ),
        ("exec sleep 9\n", "LSF did not answer about job 748 in 1 s"),
    ):
        section = {"bjobs": "/b", "bpost": program(tmp_path, lines), "timeout": 1}
        assert message(BatchSettings.model_validate({"lsf": section}), job, TEXT) == expected
    assert message(BatchSettings.model_validate({"lsf": {"bjobs": "/b", "bpost": "/no"}}), job, TEXT)
    assert message(BatchSettings.model_validate({"lsf": {"bjobs": "/b"}}), job, TEXT) == ""


def test_a_long_message_is_cut_to_what_lsf_takes(tmp_path: Path) -> None:
    path = program(tmp_path, f'printf %s "$2" | wc -c >{tmp_path}/length\n')
    settings = BatchSettings.model_validate({"lsf": {"bjobs": "/b", "bpost": path}})
    message(settings, Allocation("lsf", 748, None, HOSTS), "x" * 5000)
    assert int((tmp_path / "length").read_text()) == 511


def test_grid_engine_is_asked_for_owner_hosts_and_sum(tmp_path: Path) -> None:
    job = "<JB_job_number>9</JB_job_number>"
    place = "<queue_name>q@n1</queue_name><master>MASTER</master><slots>1</slots><tasks>2</tasks>"
    row = f"<r><job_list>{job}<state>r</state>{place}</job_list></r>"
    path = program(
        tmp_path,
        f"case $2 in -j) echo '<a><djob_info><element>{job}<JB_owner>alice</JB_owner><JB_uid>1000</JB_uid>"
        f"</element></djob_info></a>';; *) echo '{row}';; esac\n",
    )
    settings = BatchSettings.model_validate({"gridengine": {"qstat": path}})
    prove(settings, Allocation("gridengine", 9, 2, (HostSlots("n1", 1),)), "alice", 1000)
    assert asked(tmp_path) == ["-xml -j 9", "-xml -u alice -g t", "-xml -u alice"]


@pytest.mark.parametrize(("dialect", "argv"), [("openpbs", "-x -f -F json 123[4]"), ("torque", "-x 123[4]")])
def test_pbs_is_asked_in_the_sites_dialect(tmp_path: Path, dialect: str, argv: str) -> None:
    settings = BatchSettings.model_validate({"pbs": {"qstat": program(tmp_path, ""), "dialect": dialect}})
    with pytest.raises(BatchError, match=r"PBS gave no answer about job 123\[4\]; qstat said: nothing"):
        prove(settings, Allocation("pbs", 123, 4, HOSTS), "alice", 1000)
    assert asked(tmp_path) == [argv]


def test_lsf_is_asked_for_limits_where_the_site_says_so(tmp_path: Path) -> None:
    settings = BatchSettings.model_validate({"lsf": {"bjobs": program(tmp_path, ""), "limits": "ask"}})
    with pytest.raises(BatchError):
        prove(settings, Allocation("lsf", 748, None, HOSTS), "alice", 1000)
    assert asked(tmp_path) == [
        "-a -X -o jobid jobindex stat user exec_host runtimelimit run_time memlimit -json 748"
    ]


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ({"slurm": {}}, "slurm.squeue"),
        ({"slurm": {"squeue": "squeue"}}, "slurm.squeue"),
        ({"pbs": {"qstat": "/q", "dialect": "pro"}}, "pbs.dialect"),
        ({"gridengine": {"qstat": "/q", "dialect": "torque"}}, "gridengine.dialect"),
        ({"condor": {}}, "condor"),
        ({"system": "condor"}, "system"),
    ],
)
def test_a_wrong_section_is_named(document: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        BatchSettings.model_validate(document)
    assert ".".join(str(part) for part in caught.value.errors()[0]["loc"]) == key


def test_a_batch_system_that_is_none_is_not_looked_up_in_the_settings() -> None:
    settings = BatchSettings.model_validate({"slurm": {"squeue": "/q"}})
    for name in ("recheck", "system", "model_fields", "__class__", "lsf"):
        with pytest.raises(PolicyError, match="can't be proven at this site"):
            prove(settings, Allocation(name, 1, None, HOSTS), "alice", 1000)


def test_the_site_may_say_which_batch_system_it_is(tmp_path: Path) -> None:
    site = tmp_path / "dockerjob"
    both = {**SLURM_JOB, "PBS_JOBID": "11"}
    with pytest.raises(RequestError, match="looks like a job of several"):
        read_allocation(both, site)
    site.write_text("# a comment\nDOCKERJOB_BATCH=slurm\n")
    assert read_allocation(both, site).scheduler == "slurm"
    with pytest.raises(RequestError, match="PBS_NODEFILE is not set"):
        read_allocation({**both, "DOCKERJOB_BATCH": "pbs"}, site)
    site.write_text("DOCKERJOB_BATCH=\n")
    assert read_allocation(SLURM_JOB, site).job_id == "11"


def test_launch_nodes_are_left_out() -> None:
    settings = BatchSettings.model_validate({"lsf": {"bjobs": "/b", "launch_nodes": ["batch*"]}})
    claim = Allocation("lsf", 748, None, (HostSlots("batch5", 1), *HOSTS))
    assert on_compute_hosts(settings, claim).hosts == HOSTS
    assert on_compute_hosts(BatchSettings(), claim) == claim
    with pytest.raises(RequestError, match=r"no host but launch nodes \(batch5\)"):
        on_compute_hosts(settings, Allocation("lsf", 748, None, (HostSlots("batch5", 1),)))


def test_command_learns_which_job_it_is_and_no_hosts_of_it() -> None:
    made = {name: command_environment(Allocation(name, 8, 3, HOSTS)) for name in SYSTEMS}
    assert made["lsf"] == {"LSB_JOBID": "8", "LSB_JOBINDEX": "3", "LSB_DJOB_NUMPROC": "3"}
    assert made["gridengine"] == {"JOB_ID": "8", "SGE_TASK_ID": "3", "NSLOTS": "3"}
    # By SLURM_JOB_ID or PBS_JOBID an MPI would take the batch system's way of starting processes.
    assert made["slurm"] == made["pbs"] == {}


def test_an_element_of_an_array_learns_of_the_array() -> None:
    made = {name: array_variables(Allocation(name, 8, 3, HOSTS)) for name in SYSTEMS}
    assert made["lsf"] == ("LSB_JOBINDEX_STEP", "LSB_JOBINDEX_END")
    assert made["gridengine"] == ("SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE")
    assert made["slurm"] == made["pbs"] == ()
    assert {array_variables(Allocation(name, 8, None, HOSTS)) for name in SYSTEMS} == {()}


def test_a_status_that_means_something_to_the_batch_system_is_said() -> None:
    assert "run the job again" in meaning_of_status(Allocation("gridengine", 8, None, HOSTS), 99)
    assert meaning_of_status(Allocation("gridengine", 8, None, HOSTS), 0) == ""
    assert meaning_of_status(Allocation("slurm", 8, None, HOSTS), 99) == ""


def test_the_doctor_looks_for_every_program(tmp_path: Path) -> None:
    there = program(tmp_path, "")
    batch = BatchSettings.model_validate({"slurm": {"squeue": there}, "pbs": {"qstat": "/no/qstat"}})
    config: Any = SimpleNamespace(batch=batch)
    found = {(finding.level, finding.detail, finding.remedy) for finding in doctor.batch(config)}
    assert found == {("ok", there, ""), ("wrong", "/no/qstat is not there", "see batch.pbs.qstat")}
    config = SimpleNamespace(batch=BatchSettings())
    assert [finding.detail for finding in doctor.batch(config)] == ["none is configured"]


def test_the_wrapper_loads_no_parser_of_xml_and_none_of_the_brokers_packages() -> None:
    code = (
        "import sys, dockerjob.submit.cli; "
        "print([name for name in ('xml.etree', 'pydantic', 'tenacity', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=list(SYSTEMS))
def test_what_an_adapter_declares_is_documented(system: Any) -> None:
    section = DOCS.read_text().partition(f"\n## {system.title}\n")[2].partition("\n## ")[0]
    declared = [
        *system.variables,
        *system.array_variables,
        *system.programs,
        *system.options,
        *map(str, system.statuses),
    ]
    declared += [system.messenger] if system.messenger else []
    assert [name for name in declared if not re.search(rf"\b{name}\b", section)] == []
    for event, signals in system.signals.items():
        assert f"| {event} | {', '.join(signals)} |" in section, event
    assert system.marker in HELP or system.title in HELP
    assert system.label(Allocation(system.name, 8, None, HOSTS)) == "8"


def test_signals_that_can_be_caught_are_passed_on() -> None:
    sent = {name for system in SYSTEMS.values() for signals in system.signals.values() for name in signals}
    assert sent - {signal.Signals(number).name for number in FORWARDED} == {"SIGKILL", "SIGSTOP"}
