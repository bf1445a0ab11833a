# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab itself: made, repaired, used as a batch system, and gone without a trace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "lab" / "lab.py"
NAME = f"t{os.getpid()}"
NEIGHBOUR = f"{NAME}-head"
"""A name that begins like those of the first lab's namespaces."""

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]


def argv(*arguments: str, name: str = NAME) -> list[str]:
    return [sys.executable, str(PROGRAM), "--name", name, *arguments]


def lab(*arguments: str, name: str = NAME, status: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv(*arguments, name=name), capture_output=True, text=True, timeout=120, check=False
    )
    if status is not None:
        assert done.returncode == status, done.stderr
    return done


def changed(*arguments: str, name: str = NAME) -> bool:
    answer = json.loads(lab(*arguments, "--json", name=name).stdout)
    return bool(answer["changed"])


def state(name: str = NAME) -> dict[str, Any]:
    found = json.loads(lab("status", "--json", name=name, status=None).stdout)
    assert isinstance(found, dict)
    return found


def on_node1(*command: str) -> str:
    return lab("exec", "node1", "--", *command).stdout


def processes_of(name: str) -> list[str]:
    """Processes in the lab's cgroups or with its root mounted, wherever they hide."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            cgroup, mounts = (process / "cgroup").read_text(), (process / "mountinfo").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:  # a process that is ending has no mounts any more
            continue
        if f"/dockerjob-{name}/" in cgroup or f"/dockerjob-lab/{name}/" in mounts:
            found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def traces(name: str) -> dict[str, list[str]]:
    """Everything of the lab *name* that is on this machine."""
    links = subprocess.run(["ip", "-json", "link"], capture_output=True, text=True, check=True).stdout
    kept = [
        Path(f"/var/lib/dockerjob-lab/{name}"),
        Path(f"/var/lib/dockerjob-lab/.{name}.new"),
        ROOT / ".lab" / name,
        Path(f"/run/dockerjob-lab.{name}.lock"),
    ]
    everything = {
        "netns": [entry for entry in os.listdir("/run/netns") if entry.startswith(f"dj-{name}-")],
        "processes": processes_of(name),
        "mounts": [line for line in Path("/proc/mounts").read_text().splitlines() if f"/{name}/" in line],
        "cgroups": [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/dockerjob-{name}")],
        "links": [
            link["ifname"] for link in json.loads(links) if link["ifname"] in ("m-node1", "f-node1", "br-fab")
        ],
        "files": [str(path) for path in kept if path.exists()],
    }
    return {kind: found for kind, found in everything.items() if found}


@pytest.fixture(scope="module")
def running() -> Iterator[None]:
    """A lab with one compute host and the user alice."""
    lab("up", "--compute", "1")
    try:
        for host in ("head", "node1"):
            lab(
                "exec",
                host,
                "--",
                "useradd",
                "--uid",
                "2001",
                "--create-home",
                "--shell",
                "/bin/bash",
                "alice",
            )
        yield
    finally:
        lab("down")


@pytest.fixture
def no_lab() -> Iterator[None]:
    """Room for a lab of the test's own, removed at the end whatever it left."""
    lab("down", name=NEIGHBOUR)
    yield
    lab("down", name=NEIGHBOUR)


@pytest.mark.usefixtures("running")
class TestRunning:
    def test_second_up_changes_nothing_and_is_fast(self) -> None:
        begin = time.monotonic()
        assert not changed("up")
        assert time.monotonic() - begin < 2

    def test_status_tells_each_host(self) -> None:
        found = state()
        assert found["state"] == "up"
        assert [(host["name"], host["address"], host["up"]) for host in found["hosts"]] == [
            ("head", "10.77.0.1", True),
            ("node1", "10.77.0.2", True),
        ]

    def test_exec_is_inside_and_returns_the_status(self) -> None:
        assert on_node1("hostname") == "node1\n"
        assert on_node1("cat", "/proc/1/comm") == "tini\n"
        assert lab("exec", "node1", "--", "sh", "-c", "exit 7", status=7).stdout == ""

    def test_a_host_does_not_show_the_machine(self) -> None:
        assert on_node1("ls", "-A", "/root") == ".ssh\n"
        assert on_node1("ls", "/var/lib/dockerjob-lab", "/etc/docker", "/var/lib/etcd").split() == [
            "/etc/docker:",
            "/var/lib/dockerjob-lab:",
            "/var/lib/etcd:",
        ]
        assert "alice:" not in Path("/etc/passwd").read_text()

    def test_hosts_reach_each_other_by_name(self) -> None:
        assert "1 received" in on_node1("ping", "-c", "1", "-W", "2", "head")

    def test_ansible_reaches_the_hosts(self) -> None:
        ping = [
            str(Path(sys.executable).with_name("ansible")),
            "-i",
            state()["inventory"],
            "all",
            "-m",
            "ping",
        ]
        done = subprocess.run(ping, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
        assert done.stdout.count("SUCCESS") == 2, done.stdout + done.stderr

    def test_up_repairs_a_dead_host_and_keeps_its_disk(self) -> None:
        on_node1("touch", "/etc/kept", "/run/lost")
        node1 = state()["hosts"][1]
        os.kill(node1["pid"], signal.SIGKILL)
        time.sleep(0.3)
        assert state()["state"] == "partial"
        assert changed("up")
        assert state()["state"] == "up"
        assert state()["hosts"][0]["up"]
        assert lab("exec", "node1", "--", "ls", "/etc/kept", "/run/lost", status=2).stdout == "/etc/kept\n"

    def test_up_repairs_a_lost_link(self) -> None:
        subprocess.run(["ip", "-n", f"dj-{NAME}-node1", "link", "delete", "eth0"], check=True)
        assert changed("up")
        assert "1 received" in on_node1("ping", "-c", "1", "-W", "2", "head")

    def test_up_repairs_a_lost_switch(self) -> None:
        subprocess.run(["ip", "netns", "delete", f"dj-{NAME}-sw"], check=True)
        assert changed("up")
        assert "1 received" in on_node1("ping", "-c", "1", "-W", "2", "head")

    def test_grows_and_shrinks(self) -> None:
        assert changed("up", "--compute", "2")
        assert "node2" in on_node1("getent", "hosts", "10.77.0.3")
        assert changed("up", "--compute", "1")
        assert [host["name"] for host in state()["hosts"]] == ["head", "node1"]
        assert not Path(f"/run/netns/dj-{NAME}-node2").exists()

    def test_unknown_host_is_a_clear_error(self) -> None:
        assert (
            "has no host 'node9'; it has head, node1" in lab("exec", "node9", "--", "true", status=1).stderr
        )


@pytest.mark.usefixtures("running")
class TestSubmit:
    def submit(self, tmp_path: Path, script: str, *options: str, status: int = 0) -> str:
        file = tmp_path / "job.sh"
        file.write_text(script)
        return lab("submit", str(file), "--user", "alice", *options, status=status).stdout

    def test_environment_is_that_of_lsf(self, tmp_path: Path) -> None:
        script = '#BSUB -n 3 -J "a job"\n#BSUB -R "span[ptile=3]"\n#BSUB -o job-%J.out\nenv; id -un; pwd\n'
        output = self.submit(tmp_path, script, "--env", "APPLICATION=demo:1").splitlines()
        found = dict(line.partition("=")[::2] for line in output if "=" in line)
        assert output[-2:] == ["alice", "/home/alice"]
        assert found["LSB_MCPU_HOSTS"] == "node1 3 "
        assert found["LSB_HOSTS"] == "node1 node1 node1"
        assert found["LSB_JOBINDEX"] == "0"
        assert found["LSB_JOBNAME"] == "a job"
        assert found["LSB_OUTPUTFILE"] == f"job-{found['LSB_JOBID']}.out"
        assert found["APPLICATION"] == "demo:1"
        assert "LAB_NAME" not in found
        assert "SSH_AUTH_SOCK" not in found

    def test_process_is_as_lsf_makes_it(self, tmp_path: Path) -> None:
        script = (
            "readlink /proc/self/fd/0; grep SigIgn /proc/self/status\n"
            'ps -o pgid= -p $$ | tr -d " "; echo $LS_JOBPID; tail -n 1 /proc/self/cgroup\n'
        )
        stdin, ignored, group, job_pid, cgroup = self.submit(tmp_path, script).splitlines()
        assert stdin == "/dev/null"
        # Signals 32 and 33 are the C library's own; what the caller made of them can't be undone.
        assert int(ignored.split()[1], 16) & ~(0b11 << 31) == 1
        assert group == job_pid
        assert f"/dockerjob-{NAME}/node1/lsf/{NAME}/job." in cgroup

    def test_job_numbers_rise(self, tmp_path: Path) -> None:
        first, second = (int(self.submit(tmp_path, "echo $LSB_JOBID\n")) for _ in range(2))
        assert second == first + 1

    def test_exit_status_is_the_jobs(self, tmp_path: Path) -> None:
        self.submit(tmp_path, "exit 42\n", status=42)
        self.submit(tmp_path, "sh -c 'kill -TERM $$'\n", status=143)

    def test_spooled_output_is_the_users(self, tmp_path: Path) -> None:
        assert self.submit(tmp_path, "#BSUB -oo spooled\necho out; echo err >&2\n", "--spool") == ""
        report, output = on_node1("cat", "/home/alice/spooled").split("The output (if any) follows:\n\n")
        assert output == "out\nerr\n"
        assert "Successfully completed." in report
        assert on_node1("stat", "-c", "%U", "/home/alice/spooled") == "alice\n"

    @pytest.mark.parametrize(
        ("script", "message"),
        [
            ("#BSUB -n many\n", "-n many: must be a number"),
            ("#BSUB -n 99\n", "needs 99 slots, 4 on each host"),
            ("#BSUB -Z\n", "unrecognized arguments: -Z; known are -n"),
            ('#BSUB -J "open\n', "line 1 of the script"),
        ],
    )
    def test_wrong_script_is_a_clear_error(self, tmp_path: Path, script: str, message: str) -> None:
        (tmp_path / "job.sh").write_text(script)
        assert message in lab("submit", str(tmp_path / "job.sh"), "--user", "alice", status=1).stderr

    def test_root_is_no_user(self, tmp_path: Path) -> None:
        (tmp_path / "job.sh").write_text("id\n")
        assert (
            "no ordinary user 'root'"
            in lab("submit", str(tmp_path / "job.sh"), "--user", "root", status=1).stderr
        )

    def begin(self, tmp_path: Path, script: str) -> tuple[subprocess.Popen[str], str]:
        """Start a job that prints its number first."""
        (tmp_path / "job.sh").write_text(f"echo $LSB_JOBID\n{script}")
        command = argv("submit", str(tmp_path / "job.sh"), "--user", "alice")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    def test_interrupt_ends_the_job(self, tmp_path: Path) -> None:
        process, _ = self.begin(tmp_path, "exec sleep 300\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130

    def test_kill_sends_a_signal_to_the_whole_job(self, tmp_path: Path) -> None:
        process, number = self.begin(tmp_path, "setsid sleep 300 &\nsleep 300\n")
        time.sleep(0.3)
        lab("kill", number, "--signal", "USR2")
        assert process.wait(timeout=30) == 128 + signal.SIGUSR2
        assert "sleep 300" not in on_node1("ps", "ax")
        assert "is not running" in lab("kill", number, status=1).stderr


class TestOtherCheckouts:
    """The certificates of what runs in a lab are in a checkout's ``.lab``."""

    pytestmark = pytest.mark.usefixtures("no_lab")

    @pytest.fixture
    def other(self, tmp_path: Path) -> Path:
        """A checkout that has made the lab, which is up."""
        lab("up", "--compute", "1", name=NEIGHBOUR)
        record = Path(f"/var/lib/dockerjob-lab/{NEIGHBOUR}/lab.json")
        record.write_text(json.dumps({**json.loads(record.read_text()), "checkout": str(tmp_path)}))
        output = tmp_path / ".lab" / NEIGHBOUR
        output.parent.mkdir()
        (ROOT / ".lab" / NEIGHBOUR).rename(output)
        return output

    def test_lab_in_use_is_left_alone(self, other: Path) -> None:
        before = [host["pid"] for host in state(name=NEIGHBOUR)["hosts"]]
        refusal = lab("up", name=NEIGHBOUR, status=1).stderr
        assert f"in use by {other.parent.parent}" in refusal
        assert f"LAB_NAME={NEIGHBOUR} make lab-down" in refusal
        assert [host["pid"] for host in state(name=NEIGHBOUR)["hosts"]] == before

    def test_lab_of_a_checkout_that_is_gone_is_made_anew(self, other: Path) -> None:
        before = state(name=NEIGHBOUR)["hosts"]
        lab("exec", "node1", "--", "touch", "/etc/of-old", name=NEIGHBOUR)
        shutil.rmtree(other)
        assert changed("up", "--check", name=NEIGHBOUR)
        assert "not this checkout's" in lab("up", name=NEIGHBOUR).stderr
        # With the default size: the old one's was the other checkout's wish.
        assert len(state(name=NEIGHBOUR)["hosts"]) > len(before)
        lab("exec", "node1", "--", "test", "!", "-e", "/etc/of-old", name=NEIGHBOUR)
        assert not changed("up", name=NEIGHBOUR)

    def test_lab_of_another_checkout_that_is_not_up_is_made_anew(self, other: Path) -> None:
        for host in state(name=NEIGHBOUR)["hosts"]:
            os.kill(host["pid"], signal.SIGKILL)
        lab("up", "--compute", "1", name=NEIGHBOUR)
        assert state(name=NEIGHBOUR)["state"] == "up"
        assert other.exists()

    def test_record_of_an_older_version_is_a_strangers(self) -> None:
        lab("up", "--compute", "1", name=NEIGHBOUR)
        record = Path(f"/var/lib/dockerjob-lab/{NEIGHBOUR}/lab.json")
        record.write_text(json.dumps({"name": NEIGHBOUR, "compute": 1}))
        assert "not this checkout's" in lab("up", "--compute", "1", name=NEIGHBOUR).stderr
        assert not changed("up", name=NEIGHBOUR)


class TestDown:
    pytestmark = pytest.mark.usefixtures("no_lab")

    def test_leaves_nothing_and_may_be_repeated(self) -> None:
        lab("up", "--compute", "1", name=NEIGHBOUR)
        assert set(traces(NEIGHBOUR)) == {"netns", "processes", "cgroups", "files"}
        assert changed("down", name=NEIGHBOUR)
        assert traces(NEIGHBOUR) == {}
        assert not changed("down", name=NEIGHBOUR)
        assert state(NEIGHBOUR)["state"] == "down"

    @pytest.mark.usefixtures("running")
    def test_leaves_the_neighbour_alone(self) -> None:
        before = state()
        lab("up", "--compute", "1", name=NEIGHBOUR)
        lab("down", name=NEIGHBOUR)
        after = state()
        assert [host["pid"] for host in after["hosts"]] == [host["pid"] for host in before["hosts"]]
        assert not changed("up")

    @pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2])
    def test_killed_up_is_finished_or_removed(self, delay: float) -> None:
        for repair in ("up", "down"):
            process = subprocess.Popen(
                argv("up", "--compute", "1", name=NEIGHBOUR), stderr=subprocess.DEVNULL
            )
            while process.poll() is None and not Path(f"/var/lib/dockerjob-lab/{NEIGHBOUR}").exists():
                time.sleep(0.005)
            time.sleep(delay)
            process.kill()
            process.wait()
            if repair == "up":
                lab("up", "--compute", "1", name=NEIGHBOUR)
                assert state(NEIGHBOUR)["state"] == "up"
                assert lab("exec", "node1", "--", "hostname", name=NEIGHBOUR).stdout == "node1\n"
            lab("down", name=NEIGHBOUR)
            assert traces(NEIGHBOUR) == {}

    def test_killed_down_is_finished(self) -> None:
        lab("up", "--compute", "1", name=NEIGHBOUR)
        process = subprocess.Popen(argv("down", name=NEIGHBOUR), stderr=subprocess.DEVNULL)
        time.sleep(0.15)
        process.kill()
        process.wait()
        lab("down", name=NEIGHBOUR)
        assert traces(NEIGHBOUR) == {}

    def test_strangers_directory_is_not_touched(self) -> None:
        stranger = Path(f"/var/lib/dockerjob-lab/{NEIGHBOUR}")
        stranger.mkdir(parents=True)
        (stranger / "file").touch()
        try:
            assert "is no lab's" in lab("up", name=NEIGHBOUR, status=1).stderr
            assert not changed("down", name=NEIGHBOUR)
            assert (stranger / "file").exists()
        finally:
            (stranger / "file").unlink()
            stranger.rmdir()
