# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's LSF: what bsub takes, the environment it makes, how it ends jobs, and what its commands show."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from dockerjob_core.schedulers import lsf as adapter
from dockerjob_core.schedulers.base import bytes_of
from dockerjob_lab.lsf import (
    LsfError,
    bjobs,
    control,
    job,
    lists,
    queues,
    report,
    scheduler,
    site,
    start,
    view,
)
from dockerjob_lab.lsf.options import allocate, array_of, parse, split_command
from dockerjob_lab.lsf.programs import applications

SCRIPT = '#!/bin/bash\n#BSUB -n 2\n#BSUB -a "docker(mpihello:1, /scratch/x)"\n#BSUB -app docker\ntrue\n'
ALICE = job.Account("alice", 2001, 2001, "alice", "/home/alice", "/bin/bash")


def made(
    script: str = "", words: tuple[str, ...] = (), hosts: tuple[str, ...] = ("node1", "node2"), **more: Any
) -> job.Job:
    """A job of what *script* and bsub's *words* ask for."""
    options = parse(script, words)
    return job.Job(8, options, allocate(options, hosts), ALICE, "/scratch", "head", 1, **more)


class TestOptions:
    def test_the_command_line_goes_before_the_script(self) -> None:
        found = parse(
            '#BSUB -n 2 -J "a name"\n#BSUB -W 1:30 -M 2GB\nrun\n#BSUB -P late\n', ("-n4,8", "-Is", "-K")
        )
        assert (found.slots, found.job_name, found.project) == (4, "a name", "late")
        assert found.limits == {"RUNTIMELIMIT": "90.0", "MEMLIMIT": "2 Gbytes"}
        assert found.run_seconds == 5400
        assert (found.interactive, found.wait) == ("Is", True)

    @pytest.mark.parametrize(
        ("argv", "options", "command"),
        [
            (["-n", "2", "mpirun", "-np", "2", "-app"], ["-n", "2"], ["mpirun", "-np", "2", "-app"]),
            (["-n2", "-Is", "bash"], ["-n2", "-Is"], ["bash"]),
            (["-K", "-o", "x"], ["-K", "-o", "x"], []),
            ([], [], []),
        ],
    )
    def test_the_commands_own_options_are_not_bsubs(
        self, argv: list[str], options: list[str], command: list[str]
    ) -> None:
        assert split_command(argv) == (options, command)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("-x",), "unrecognized arguments: -x; known are -n -J"),
            (("-w", "done(1)"), "this LSF knows no dependencies"),
            (("-n", "0"), "must be a number of slots"),
            (("-n", "many"), "must be a number of slots"),
            (("-W", "1:x"), r"must be \[hours:\]minutes"),
            (("-M", "2 potatoes"), "with KB, MB, GB or TB"),
            (("-J",), "expected one argument"),
        ],
    )
    def test_what_is_not_known_is_refused_in_one_line(self, words: tuple[str, ...], message: str) -> None:
        with pytest.raises(LsfError, match=message) as error:
            parse("", words)
        assert "\n" not in str(error.value)

    def test_an_open_quote_names_its_line(self) -> None:
        with pytest.raises(LsfError, match="line 2 of the script"):
            parse('#!/bin/sh\n#BSUB -J "open\n')

    @pytest.mark.parametrize(
        ("span", "given"),
        [
            ("", (("a", 4), ("b", 2))),
            ("span[ptile=2]", (("a", 2), ("b", 2), ("c", 2))),
            ("select[mem>1] span[ ptile = 5 ]", (("a", 5), ("b", 1))),
            ("span[hosts=1]", (("a", 6),)),
        ],
    )
    def test_the_span_says_how_many_on_a_host(self, span: str, given: tuple[tuple[str, int], ...]) -> None:
        assert allocate(parse("", ("-n", "6", "-R", span)), ("a", "b", "c")) == given

    @pytest.mark.parametrize("span", ["span[hosts=2]", "span[ptile=0]"])
    def test_a_span_that_lsf_does_not_know_is_refused(self, span: str) -> None:
        with pytest.raises(LsfError, match="LSF knows only"):
            allocate(parse("", ("-R", span)), ("a",))

    def test_an_array_has_steps_and_a_limit(self) -> None:
        array = array_of("a[b][1-9:3,20]%2")
        assert array
        assert (array.name, array.at_once) == ("a[b]", 2)
        assert array.elements() == {1: (3, 9), 4: (3, 9), 7: (3, 9), 20: (1, 20)}
        assert array_of("plain") is None
        assert array_of("odd[x]") is None

    @pytest.mark.parametrize("name", ["a[0-3]", "a[3-1]", "a[1-2000]"])
    def test_an_array_that_cannot_be_is_refused(self, name: str) -> None:
        with pytest.raises(LsfError, match="Bad job array index list"):
            array_of(name)


class TestEnvironment:
    def test_it_is_what_the_adapter_reads(self) -> None:
        environment = job.environment(made("#BSUB -n 3\n#BSUB -R span[ptile=2]\n"))
        found = adapter.read(environment, lambda path: "node1\nnode1\nnode2\n")
        assert [(host.name, host.slots) for host in found.hosts] == [("node1", 2), ("node2", 1)]
        assert environment["LSB_HOSTS"] == "node1 node1 node2"
        assert environment["LSB_MCPU_HOSTS"] == "node1 2 node2 1 "
        assert (environment["LSB_JOBINDEX"], environment["LSB_BATCH_JID"]) == ("0", "8")
        assert "LSB_JOBINDEX_END" not in environment
        assert "LSB_INTERACTIVE" not in environment

    @pytest.mark.parametrize(("slots", "there"), [(819, True), (820, False)])
    def test_a_list_of_hosts_of_4096_characters_is_left_out(self, slots: int, there: bool) -> None:
        """820 names of four letters and the blanks between are 4099 characters."""
        large = made(
            "", ("-n", str(slots), "-R", "span[hosts=1]"), ("host",), submitted_with={"LSB_HOSTS": "x"}
        )
        environment = job.environment(large)
        assert (
            environment.get("LSB_HOSTS") == ("host " * slots).rstrip()
            if there
            else "LSB_HOSTS" not in environment
        )
        assert environment["LSB_MCPU_HOSTS"] == f"host {slots} "

    def test_an_element_has_its_range(self) -> None:
        environment = job.environment(made("", ("-J", "arr[3-9:3]"), index=6))
        assert (environment["LSB_JOBID"], environment["LSB_JOBINDEX"]) == ("8", "6")
        assert environment["LSB_BATCH_JID"] == "8[6]"
        assert (environment["LSB_JOBINDEX_STEP"], environment["LSB_JOBINDEX_END"]) == ("3", "9")
        # OpenLava gives the whole specification as the name.
        assert environment["LSB_JOBNAME"] == "arr[3-9:3]"
        assert environment["LSB_JOBFILENAME"] == "/home/alice/.lsbatch/1.8.6"

    def test_what_bsub_hands_on(self) -> None:
        mine = {
            "MINE": "1",
            "LSB_JOBID": "7",
            "HOME": "/tmp",
            "TERM": "xterm",
            "LSB_SUB_HOST": "x",
            "PATH": "/mine",
        }
        environment = job.environment(made("", ("-o", "%J.out"), submitted_with=mine))
        assert (environment["MINE"], environment["PATH"]) == ("1", "/mine")
        assert (environment["HOME"], environment["LSB_JOBID"], environment["LSB_SUB_HOST"]) == (
            "/home/alice",
            "8",
            "head",
        )
        assert environment["LSB_OUTPUTFILE"] == "8.out"
        assert "TERM" not in environment
        interactive = job.environment(made("", ("-Is",), submitted_with=mine))
        assert (interactive["TERM"], interactive["LSB_INTERACTIVE"]) == ("xterm", "Y")

    def test_words_of_a_command_stay_words_and_one_is_a_line(self) -> None:
        assert job.command_line(["echo", "a", "b  c", "$HOME"]) == "echo a 'b  c' '$HOME'"
        assert job.command_line(["sleep 1; exit 3"]) == "sleep 1; exit 3"
        assert "\nsleep 1; exit 3\nExitStat=$?\n" in job.job_file(made(command="sleep 1; exit 3"))


class TestSite:
    def test_the_profile_is_the_site_file_with_the_labs_path(self) -> None:
        profile = site.read_profile("docker", applications())
        assert profile.job_starter == "/share/dockerjob/integration/job_starter.sh"
        assert profile.post_exec == "/share/dockerjob/integration/job_gone.sh --wait 120"
        assert site.find_profile("") is None
        with pytest.raises(LsfError, match="-app other: there is no such application profile"):
            site.read_profile("other", applications())

    def test_the_starter_stands_before_the_script_in_the_job_file(self) -> None:
        plain = made(SCRIPT)
        assert (plain.options.application, plain.options.esub) == ("docker", "docker(mpihello:1, /scratch/x)")
        assert "\n/home/alice/.lsbatch/1.8.shell\n" in job.job_file(plain)
        assert "LSB_JOB_STARTER" not in job.environment(plain)
        started = dataclasses.replace(plain, job_starter="/starter")
        assert "\n/starter /home/alice/.lsbatch/1.8.shell\n" in job.job_file(started)
        assert job.environment(started)["LSB_JOB_STARTER"] == "/starter"

    def test_what_an_esub_reads(self) -> None:
        told = site.parameters(parse(SCRIPT, ("-P", "p")))
        assert 'LSB_SUB_PROJECT_NAME="p"\n' in told
        assert "LSB_SUB_NUM_PROCESSORS=2\n" in told


class TestSlurm:
    @pytest.mark.parametrize(
        ("words", "wanted"),
        [
            (
                ("-n", "4", "-R", "span[ptile=2]", "-W", "10"),
                {"--nodes=2", "--ntasks-per-node=2", "--time=40"},
            ),
            (("-n", "3", "-R", "span[hosts=1]"), {"--nodes=1", "--ntasks-per-node=3"}),
            (("-J", "a[1-4]%2"), {"--array=1-4%2", "--nodes=1"}),
            (("-m", "node2 node3"), {"--exclude=node1"}),
        ],
    )
    def test_what_is_asked_of_it(self, words: tuple[str, ...], wanted: set[str]) -> None:
        options = parse("", words)
        found = scheduler.request(options, array_of(options.job_name), ["node1", "node2", "node3"])
        assert wanted <= set(found)

    def test_a_row_is_lsfs_word_and_its_slots(self) -> None:
        row = scheduler._row(
            "9|8|2|RUNNING|alice|2001|node1,node2|4|2|2026-11-27T21:08:19|2026-11-27T21:08:18|None"
        )
        assert (row.number, row.index, row.state, row.label, row.name) == (8, 2, "RUN", "8[2]", "8_2")
        assert row.allocation(parse("", ("-n", "3", "-R", "span[ptile=2]"))) == (("node1", 2), ("node2", 1))

    @pytest.mark.parametrize(
        ("state", "reason", "word"),
        [
            ("PENDING", "Resources", "PEND"), ("PENDING", "JobHeldUser", "PSUSP"), ("SUSPENDED", "None", "SSUSP"),
            ("STOPPED", "None", "USUSP"), ("COMPLETING", "None", "RUN"), ("COMPLETED", "None", "DONE"),
            ("NODE_FAIL", "None", "EXIT"),
        ],
    )  # fmt: skip
    def test_states(self, state: str, reason: str, word: str) -> None:
        row = scheduler._row(f"9|9|N/A|{state}|alice|2001||4|2|N/A|2026-11-27T21:08:18|{reason}")
        assert (row.state, row.index, row.began, row.hosts) == (word, 0, None, ())


class TestKeeper:
    def keeper(self, sent: list[str], asked: list[str], limit: float | None = None) -> start.Keeper:
        return start.Keeper(
            queues.SEQUENCE, limit, lambda: asked[0] if asked else None, sent.append, began=100.0
        )

    def test_a_kill_is_int_term_kill_with_pauses(self) -> None:
        sent: list[str] = []
        asked: list[str] = []
        keeper = self.keeper(sent, asked)
        keeper.tick(150)
        assert sent == []
        asked.append("TERM_OWNER")
        for now, expected in (
            (200, "INT"),
            (209, "INT"),
            (210, "TERM"),
            (219, "TERM"),
            (220, "KILL"),
            (300, "KILL"),
        ):
            keeper.tick(now)
            assert sent[-1] == expected
        assert sent == ["CONT", "INT", "TERM", "KILL"]
        assert keeper.reason == "TERM_OWNER"

    def test_the_run_limit_warns_and_ends_ten_minutes_later(self) -> None:
        sent: list[str] = []
        keeper = self.keeper(sent, [], limit=60)
        for now in (159, 160, 161, 759, 760, 770, 780):
            keeper.tick(now)
        assert sent == ["USR2", "CONT", "INT", "TERM", "KILL"]
        assert keeper.reason == "TERM_RUNLIMIT"

    def test_bkill_after_the_run_limit_does_not_wait(self) -> None:
        sent: list[str] = []
        asked: list[str] = []
        keeper = self.keeper(sent, asked, limit=60)
        keeper.tick(160)
        asked.append("TERM_OWNER")
        keeper.tick(161)
        assert sent == ["USR2", "CONT", "INT"]

    def test_a_forced_kill_does_not_wait(self) -> None:
        sent: list[str] = []
        self.keeper(sent, ["TERM_FORCE_OWNER"]).tick(150)
        assert sent == ["KILL"]

    def test_a_queue_kills_at_once(self) -> None:
        sent: list[str] = []
        start.Keeper(queues.PROFILES["killonly"], None, lambda: "TERM_OWNER", sent.append, began=0.0).tick(1)
        assert sent == ["KILL"]


def seen(**more: Any) -> view.Seen:
    fields: dict[str, Any] = {
        "number": 10001, "index": 0, "user": "alice", "state": "RUN", "hosts": (("node1", 2), ("node2", 1)),
        "queue": "normal", "name": "IB_pitzDaily_OF", "from_host": "head", "submitted": 1.0, "began": 2.0,
        "end": None, "options": parse("", ("-n", "3", "-W", "10")), "told": {"command": "true", "directory": "/"},
        "row": None,
    }  # fmt: skip
    return view.Seen(**{**fields, **more})


class TestShown:
    def test_the_list_has_a_line_for_each_host_and_cuts_names(self) -> None:
        header, first, second = bjobs.rows([seen()], wide=False)
        assert header.split()[:8] == [*(name for name, _ in bjobs.COLUMNS), "SUBMIT_TIME"]
        assert first.split()[:7] == ["10001", "alice", "RUN", "normal", "head", "2*node1", "*zDaily_OF"]
        assert second.split() == ["node2"]
        assert first.index("2*node1") == second.index("node2") == header.index("EXEC_HOST")

    def test_the_wide_list_cuts_nothing(self) -> None:
        _, line = bjobs.rows([seen()], wide=True)
        assert "2*node1:node2 IB_pitzDaily_OF" in line

    def test_the_answer_is_what_the_adapter_reads(self) -> None:
        fields = seen().fields()
        assert adapter.hosts_of(fields["EXEC_HOST"]) == {"node1": 2, "node2": 1}
        assert adapter.run_limit_of(fields["RUNTIMELIMIT"]) == 600
        assert adapter.run_time_of(fields["RUN_TIME"]) > 0
        assert bytes_of(seen(options=parse("", ("-M", "3MB"))).fields()["MEMLIMIT"]) == 3 << 20

    def test_how_it_ended(self) -> None:
        end = report.End(143, 2.0, 12.0, "TERM_RUNLIMIT", 1.5)
        told = bjobs.long_form(seen(state="EXIT", end=end))
        assert "Exited with exit code 143. The CPU time used is 1.5 seconds." in told
        assert "TERM_RUNLIMIT: job killed after reaching LSF run time limit." in told

    def test_the_tables_count_slots(self) -> None:
        waiting = seen(state="PEND", hosts=(), options=parse("", ("-n", "2")))
        assert lists.queue_rows([seen(), waiting])[1].split()[-4:] == ["5", "2", "3", "0"]
        nodes = [("node1", "mixed", 2, 4000), ("node2", "down*", 4, 4000)]
        _, first, second = lists.host_rows(nodes, [seen(), waiting])
        assert first.split() == ["node1", "closed", "-", "2", "2", "2", "0", "0", "0"]
        assert second.split()[1] == "unavail"

    @pytest.mark.parametrize("label", ["x", "1[", "1[2", "-1", "1[a]"])
    def test_what_is_no_job_is_refused(self, label: str) -> None:
        with pytest.raises(LsfError, match="Illegal job ID"):
            view.parse_label(label)

    def test_a_label_names_elements(self) -> None:
        assert view.parse_label("19[1-3,7]") == (19, {1, 2, 3, 7})
        assert view.parse_label("19") == (19, set())

    @pytest.mark.parametrize(("text", "name"), [("TERM", "TERM"), ("SIGUSR2", "USR2"), ("9", "KILL")])
    def test_signals_by_name_and_number(self, text: str, name: str) -> None:
        assert control.signal_name(text) == name
        with pytest.raises(LsfError, match="Illegal signal value"):
            control.signal_name(f"{text}X")


def test_the_report_is_lsfs() -> None:
    told = job.description(
        made("#BSUB -n 3\n#BSUB -R span[ptile=2]\n#BSUB -o x -e y\nrun\n"), "run\n", {}, spool=True
    )
    text = report.text(told["report"], report.End(3, 10.0, 15.0, "", 1.25, 5 << 20))
    assert text.startswith("Sender: LSF System <lsfadmin@node1>\nSubject: Job 8: <")
    assert "in cluster <lab> Exited\n" in text
    assert (
        "Job was executed on host(s) <2*node1>\n                            <node2>, in queue <normal>"
        in text
    )
    assert "# LSBATCH: User input\nrun\n-----" in text
    assert "\nExited with exit code 3.\n\nResource usage summary:\n\n    CPU time :" in text
    assert text.endswith(
        "The output (if any) follows:\n\nPS:\n\nRead file <y> for stderr output of this job.\n\n\n"
    )
    assert "Successfully completed." in report.text(told["report"], report.End(0, 10.0, 15.0))
