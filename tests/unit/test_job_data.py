# SPDX-License-Identifier: GPL-3.0-or-later
"""A job's data: what its variables name, what is refused, and what its exit status says; scratch space."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from dockerjob.request import JobRequest
from dockerjob.submit import cli, rsync, scratch, staging
from dockerjob.submit.rsync import Progress, Signals, Transfer, reason
from dockerjob_core.errors import (
    ConfigError,
    DockerjobError,
    PolicyError,
    RequestError,
    StageInError,
    StageOutError,
    StoppedError,
)
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to submit in, with inputs, and an empty JOBDIR beside it."""
    for name in (
        "submit/case/system/control",
        "submit/case/.hidden",
        "submit/a b.dat",
        "submit/x1",
        "submit/x2",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "submit")
    return tmp_path


def environment(tree: Path, **changes: str) -> dict[str, str]:
    values = {
        "APPLICATION": "openfoam:1912",
        "COMMAND": "true",
        "JOBDIR": str(tree / "job"),
        "LSB_JOBID": "102",
        "LSB_MCPU_HOSTS": "node1 2 node2 2 ",
    }
    return {**values, **changes}


def inputs(tree: Path, text: str) -> list[str]:
    found = staging.read_job(environment(tree, STAGE_IN=text)).inputs
    return [os.path.relpath(path, tree / "submit") for path in found]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("case", ["case"]),
        ("case/", ["case/.hidden", "case/system"]),
        ("x[12] 'a b.dat'", ["x1", "x2", "a b.dat"]),
        ("*", ["a b.dat", "case", "x1", "x2"]),
        ("**/control", ["case/system/control"]),
        ("x1 ./x1", ["x1"]),
    ],
)
def test_inputs_are_paths_or_patterns_of_them(tree: Path, text: str, names: list[str]) -> None:
    assert inputs(tree, text) == names


def test_what_command_has_removed_or_closed_is_missing_or_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    assert staging.find_results(str(tree / "gone"), (".",)) == ((), ["."])
    (tree / "empty").mkdir()
    assert staging.find_results(str(tree / "empty"), (".", "./", "*")) == ((), ["*"])
    monkeypatch.setattr(os, "listdir", closed)
    with pytest.raises(
        StageOutError, match=r"STAGE_OUT failed: .*/job/\.: Permission denied; the results stay in .*/job"
    ):
        staging.find_results(str(tree / "job"), (".",))
    with pytest.raises(RequestError, match=r"STAGE_IN: .*/case/: Permission denied"):
        inputs(tree, "case/")


def test_a_broker_that_can_not_be_called_leaves_no_scratch_space(
    tree: Path, steps: Steps, site: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_request: JobRequest) -> int:
        raise ConfigError("can't start sudo")

    base = site()
    monkeypatch.setattr(staging, "call_broker", fail)
    with pytest.raises(ConfigError):
        staging.run_staged(in_scratch(tree))
    assert list(base.iterdir()) == []


def test_a_name_that_is_there_is_no_pattern(tree: Path) -> None:
    (tree / "submit/x[1]").touch()
    assert inputs(tree, "x[1]") == ["x[1]"]


def test_results_are_relative_to_jobdir_and_come_once(tree: Path) -> None:
    assert staging.find_results(str(tree / "submit"), ("case/", "x*", "x1", "*.out")) == (
        ("case", "x1", "x2"),
        ["*.out"],
    )
    names, missing = staging.find_results(str(tree / "submit/case"), (".",))
    assert (names, missing) == ((".hidden", "system"), [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"STAGE_IN": "nope"}, "STAGE_IN: there is no .*/submit/nope"),
        ({"STAGE_IN": "no*pe"}, r"there is no .*/no\*pe"),
        ({"STAGE_IN": "'x1"}, "STAGE_IN=.*quotation"),
        ({"STAGE_IN": "x1 ../x1"}, "would both be x1 in JOBDIR"),
        ({"STAGE_IN": ".."}, "which it holds"),
        ({"STAGE_IN": "../job/here"}, "is in JOBDIR already"),
        ({"STAGE_OUT": "/etc/passwd"}, "not relative to JOBDIR"),
        ({"STAGE_OUT": "a/../../b"}, "has '..' in it"),
        ({"STAGE_OUT": "*", "STAGE_OUT_TO": "../job"}, "is JOBDIR, or lies in it"),
        ({"STAGE_OUT": "*", "STAGE_OUT_TO": "../job/results"}, "is JOBDIR, or lies in it"),
        ({"STAGE_OUT_TO": "results"}, "STAGE_OUT is not"),
        ({"STAGE_IN": "x1", "COMMAND": ""}, "COMMAND is not set"),
        ({"STAGE_IN": "x1", "JOBDIR": "/no/such"}, "No such file"),
    ],
)
def test_what_can_not_be_copied_is_refused_by_name(tree: Path, changes: dict[str, str], message: str) -> None:
    (tree / "x1").touch()
    (tree / "job/here").touch()
    with pytest.raises(RequestError, match=message):
        staging.read_job(environment(tree, **changes))


def test_check_says_what_would_be_copied(tree: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = environment(tree, STAGE_IN="x?", STAGE_OUT="*", STAGE_OUT_TO="results")
    assert staging.main(asked, check=True, stage_out=False) == 0
    assert capfd.readouterr().out.splitlines() == [
        "job 102: openfoam:1912 on node1 (2 slots), node2 (2 slots)",
        f"STAGE_IN: 2 paths to {tree}/job; STAGE_OUT to {tree}/submit/results",
    ]
    assert not (tree / "submit/results").exists()


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), max_size=3
    )
)
def test_no_name_reaches_the_command_line(names: list[str]) -> None:
    argv = Transfer("STAGE_IN", "/", tuple(names), "/to", keep_paths=False, follow=True).argv(verify=True)
    assert argv == Transfer("STAGE_IN", "/", (), "/to", keep_paths=False, follow=True).argv(verify=True)


def test_a_job_without_data_loads_nothing_of_this() -> None:
    code = (
        "import sys; import dockerjob.submit.cli; "
        "print([name for name in sys.modules if name.startswith('dockerjob.submit.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['dockerjob.submit.cli']"


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (
            b'rsync: [receiver] write failed on "/q/big": Disk quota exceeded (122)\n'
            b"rsync error: error in file IO (code 11) at receiver.c(380) [receiver=3.2.7]\n",
            'write failed on "/q/big": Disk quota exceeded (122)',
        ),
        (b"\nrsync error: received SIGINT\n", "received SIGINT"),
        (b"a\x1b[2Jb\xff\n", "a?[2Jb?"),
        (b"", "rsync ended with status 11"),
    ],
)
def test_the_first_complaint_of_rsync_s_is_passed_on_in_one_line(messages: bytes, text: str) -> None:
    assert reason(messages, 11) == text


def test_progress_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    progress = Progress("STAGE_IN")
    step = b"\r     32,768  12%   10.00MB/s    0:00:01\r  1,234,567  45%   10.21MB/s    0:00:12 (xfr#1, to-chk=1/3)"
    progress.take(step)
    monkeypatch.setattr(rsync, "INTERVAL", 0.0)
    progress.take(step)
    progress.take(b"nothing of the kind")
    progress.end()
    assert capfd.readouterr().err == (
        "hpc_submit_dockerjob: STAGE_IN: 45% done, 1,234,567 bytes, 10.21MB/s\n"
    )


def test_progress_on_a_terminal_stays_in_place(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "isatty", lambda number: number == 2)
    progress = Progress("STAGE_OUT")
    progress.take(b"  1,000  45%   10.21MB/s")
    progress.end()
    written = capfd.readouterr().err
    assert (written[0], written[-1], written.count("\n")) == ("\r", "\n", 1)


# -- the order of things, and the exit status ----------------------------------------------------------


class Steps:
    """Stands in for the broker and rsync, and keeps what was done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.status = 0
        self.refusal = 0
        self.fails: dict[str, str | DockerjobError] = {}
        self.jobdir = Path()
        self.writes = "result"

    def ask(self, request: JobRequest) -> int:
        self.done.append("ask")
        return self.refusal

    def ask_sudo(self, _status: int) -> int:
        raise AssertionError("sudo has let the user ask, and its word at the end must not cost results")

    def run(self, request: JobRequest) -> int:
        assert "ask" in self.done
        self.done.append("run")
        self.jobdir = Path(request.jobdir)
        if self.writes:
            (self.jobdir / self.writes).write_text("valuable")
        return self.status

    def copy(self, transfer: Transfer, _signals: Signals) -> str:
        self.done.append(transfer.label)
        self.jobdir = Path(transfer.target if transfer.label == "STAGE_IN" else transfer.root)
        fails = self.fails.get(transfer.label, "")
        if isinstance(fails, DockerjobError):
            raise fails
        return fails


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    monkeypatch.setattr(staging, "would_refuse", steps.ask)
    monkeypatch.setattr(staging, "call_broker", steps.run)
    monkeypatch.setattr(staging, "copy", steps.copy)
    for module in (cli, staging):
        monkeypatch.setattr(module, "check_refusal", steps.ask_sudo)
    monkeypatch.setattr(Signals, "install", lambda _self: None)
    return steps


@pytest.fixture
def site(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Give the site scratch space with a policy; return the user's directory."""

    def write(keep: str = "never") -> Path:
        file = tree / "default"
        file.write_text(
            f"DOCKERJOB_BATCH=\nDOCKERJOB_SCRATCH={tree}/scratch\nDOCKERJOB_SCRATCH_KEEP={keep}\n"
            f"DOCKERJOB_LOCAL=/nowhere {tree}/local/\n"
        )
        for reader in (scratch.find, cli.is_local):
            monkeypatch.setattr(reader, "__defaults__", (file,))
        (tree / "scratch").mkdir(exist_ok=True)
        return Path(scratch.find(file).base)

    return write


def in_scratch(tree: Path, **changes: str) -> dict[str, str]:
    return environment(tree, JOBDIR="", STAGE_IN="x1", STAGE_OUT="result", STAGE_OUT_TO="out", **changes)


def test_the_broker_is_asked_before_anything_is_copied(tree: Path, steps: Steps) -> None:
    assert staging.run_staged(environment(tree, STAGE_IN="x1", STAGE_OUT="result")) == 0
    assert steps.done == ["ask", "STAGE_IN", "run", "STAGE_OUT"]


def test_a_job_that_the_site_refuses_makes_nothing(
    tree: Path, steps: Steps, site: Callable[..., Path]
) -> None:
    base, steps.refusal = site(), 202
    assert staging.run_staged(in_scratch(tree)) == 202
    assert (steps.done, list(base.iterdir()), (tree / "submit/out").exists()) == (["ask"], [], False)


def test_a_jobdir_that_one_host_has_is_copied_to_scratch_space_and_back(
    tree: Path,
    steps: Steps,
    site: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, jobdir = site(), tree / "local/job"
    jobdir.mkdir(parents=True)
    (jobdir / "input").touch()
    variables = environment(tree, JOBDIR=str(jobdir))
    assert cli.is_staged(variables)
    assert not cli.is_staged({**variables, "JOBDIR": f"{tree}/locally"})
    with monkeypatch.context() as there:
        there.chdir(jobdir)
        assert not cli.is_local("")
    assert staging.read_job(variables).inputs == (f"{jobdir}/input",)
    assert staging.read_job(variables).staging.target == str(jobdir)
    assert staging.run_staged(variables) == 0
    assert steps.done == ["ask", "STAGE_IN", "run", "STAGE_OUT"]
    assert steps.jobdir.parent == base
    assert f"to {jobdir}" in capfd.readouterr().err
    only = staging.read_job({**variables, "STAGE_OUT": "result", "STAGE_OUT_TO": "out"}).staging
    assert (only.results, only.target) == (("result",), f"{tree}/submit/out")


def test_inputs_that_can_not_be_copied_start_nothing(
    tree: Path, steps: Steps, site: Callable[..., Path]
) -> None:
    base = site()
    steps.fails["STAGE_IN"] = "No space left on device (28)"
    with pytest.raises(StageInError, match="No space left on device") as caught:
        staging.run_staged(in_scratch(tree))
    assert (caught.value.exit_status, steps.done, list(base.iterdir())) == (207, ["ask", "STAGE_IN"], [])


@pytest.mark.parametrize("keep", scratch.POLICIES)
@pytest.mark.parametrize("status", [0, 3])
def test_scratch_space_stays_by_the_site_s_policy(
    tree: Path, steps: Steps, site: Callable[..., Path], keep: str, status: int
) -> None:
    base, steps.status = site(keep), status
    assert staging.run_staged(in_scratch(tree)) == status
    assert steps.jobdir.parent == base
    assert steps.jobdir.name.startswith("dockerjob.102.")
    assert steps.jobdir.exists() == (keep == "always" or (keep == "failed" and status != 0))


@pytest.mark.parametrize(
    ("fails", "error", "status"),
    [("Disk quota exceeded (122)", StageOutError, 206), (StoppedError(15), StoppedError, 143)],
)
def test_results_that_can_not_be_copied_stay_and_it_is_said_where(
    tree: Path,
    steps: Steps,
    site: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
    fails: str | DockerjobError,
    error: type[DockerjobError],
    status: int,
) -> None:
    site()
    steps.fails["STAGE_OUT"] = fails
    with pytest.raises(error) as caught:
        staging.run_staged(in_scratch(tree))
    assert caught.value.exit_status == status
    said = f"{capfd.readouterr().err}{caught.value}"
    assert f"the results stay in {steps.jobdir}; " in said
    assert (steps.jobdir / "result").read_text() == "valuable"
    # COMMAND's own exit status comes first, and they stay all the same.
    steps.status = 3
    assert staging.run_staged(in_scratch(tree)) == 3
    assert f"the results stay in {steps.jobdir}; " in capfd.readouterr().err
    assert (steps.jobdir / "result").exists()


def test_a_result_that_is_missing_is_an_error_of_a_job_that_went_well(
    tree: Path, steps: Steps, site: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    base, steps.writes = site(), "other"
    with pytest.raises(StageOutError, match="nothing in JOBDIR matches result"):
        staging.run_staged(in_scratch(tree))
    assert (steps.jobdir / "other").exists()
    steps.status, kept = 210, set(base.iterdir())
    assert staging.run_staged(in_scratch(tree)) == 210
    assert "STAGE_OUT: nothing in JOBDIR matches result" in capfd.readouterr().err
    assert set(base.iterdir()) == kept


def test_results_that_have_stayed_can_be_brought_out_alone(tree: Path, steps: Steps) -> None:
    (tree / "job/result").touch()
    assert staging.main(environment(tree, STAGE_OUT="result"), check=False, stage_out=True) == 0
    assert steps.done == ["STAGE_OUT"]
    for changes in (
        {},
        {"STAGE_OUT": "*", "JOBDIR": ""},
        {"STAGE_OUT": "*", "STAGE_OUT_TO": str(tree / "job")},
    ):
        with pytest.raises(RequestError):
            staging.main(environment(tree, **changes), check=False, stage_out=True)


def test_a_target_that_can_not_be_made_is_said_before_the_job(tree: Path, steps: Steps) -> None:
    with pytest.raises(RequestError, match=r"STAGE_OUT_TO=.*x1/out: Not a directory"):
        staging.run_staged(environment(tree, STAGE_OUT="*", STAGE_OUT_TO="x1/out"))
    assert steps.done == ["ask"]


def test_sudo_s_refusal_is_told_from_the_broker_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "broker_argv", lambda *_options: ["false"])
    with pytest.raises(ConfigError, match="sudo does not let you"):
        cli.check_refusal(1)
    monkeypatch.setattr(cli, "broker_argv", lambda *_options: ["true"])
    assert (cli.check_refusal(1), cli.check_refusal(202)) == (1, 202)
    # A directory service that hangs has refused nothing.
    monkeypatch.setattr(cli, "broker_argv", lambda *_options: ["sleep", "60"])
    monkeypatch.setattr(cli, "SUDO_PATIENCE", 0.1)
    assert cli.check_refusal(1) == 1


def test_a_signal_that_comes_before_the_broker_is_there_reaches_it() -> None:
    previous = {number: signal.getsignal(number) for number in cli.FORWARDED}
    forward = cli._Forward()
    reader, writer = os.pipe()
    try:
        forward.install()
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        with os.fdopen(writer, "wb") as pipe, os.fdopen(reader) as told:
            forward.to(pipe)
            os.kill(os.getpid(), signal.SIGUSR2)
            lines = [json.loads(told.readline())["signal"] for _ in range(3)]
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    # Of two that wait at once the system delivers the lower number first.
    assert lines == [signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2]


# -- scratch space -------------------------------------------------------------------------------------


def test_scratch_space_is_the_user_s_alone(tree: Path, site: Callable[..., Path]) -> None:
    base = site()
    made = Path(scratch.find(tree / "default").make("19_3"))
    assert (base.stat().st_mode & 0o777, made.stat().st_mode & 0o777) == (0o700, 0o700)
    assert made.parent == base


def test_scratch_space_without_results_is_refused(tree: Path, site: Callable[..., Path]) -> None:
    site()
    with pytest.raises(RequestError, match="STAGE_OUT is not set"):
        staging.read_job(environment(tree, JOBDIR="", STAGE_IN="x1"))


def test_a_site_without_scratch_space_says_so(tree: Path) -> None:
    with pytest.raises(RequestError, match="JOBDIR is not set, and this site has no scratch space"):
        scratch.find(tree / "nowhere")


def test_a_policy_that_is_none_is_named(site: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="DOCKERJOB_SCRATCH_KEEP='sometimes' is none of never"):
        site("sometimes")


def test_another_s_directory_is_no_scratch_space(
    tree: Path, site: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = site()
    os.chown(base, 4242, -1)
    with pytest.raises(PolicyError, match="belongs to uid 4242"):
        scratch.find(tree / "default")
    base.rmdir()
    # What a link of the user's leads to is the place: the broker is asked about the same.
    (tree / "elsewhere").mkdir()
    base.symlink_to(tree / "elsewhere")
    assert scratch.find(tree / "default").base == str(tree / "elsewhere")
    os.chown(base, 4242, -1, follow_symlinks=False)
    with pytest.raises(PolicyError, match="a link of somebody else's"):
        scratch.find(tree / "default")
    base.unlink()
    base.symlink_to(base)
    with pytest.raises(PolicyError, match="you have no scratch space"):
        scratch.find(tree / "default")


def test_scratch_space_that_its_job_has_closed_is_removed(tmp_path: Path) -> None:
    (tmp_path / "top/closed/deeper").mkdir(parents=True)
    (tmp_path / "top/closed/file").touch()
    (tmp_path / "top/link").symlink_to("/etc")
    (tmp_path / "top/closed").chmod(0o500)
    assert scratch.remove(str(tmp_path / "top")) == ""
    assert list(tmp_path.iterdir()) == []
    assert scratch.remove(str(tmp_path / "top")) == f"{tmp_path}/top: No such file or directory"
