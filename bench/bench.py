# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job costs, measured in the lab next to a floor on the same hosts.

The floor is the plain way: ``ssh host docker run`` on all hosts at once, and ``docker rm
-f`` at the end, with the same image.  Floor and job take turns in one run, so the ratios
hold on a machine whose speed drifts.  Writes ``bench/results.json`` and the table of
``docs/performance.md``.

Usage: bench.py [--runs N] [--idle SECONDS] [--skip-openfoam]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from common import HOSTS, on_all, say, spread, start_wrapper, timed  # it makes lab importable
from distribution import measure_distribution
from dockerjob_core import node_program
from dockerjob_lab.client import CONFIG, ROOT, Cluster
from dockerjob_lab.model import IMAGES
from tables import write_page

TICKS = os.sysconf("SC_CLK_TCK")
PREPARE = (ROOT / "examples/pitzdaily_prepare.bsub").read_text()
PITZDAILY = (ROOT / "examples/pitzdaily.bsub").read_text()


def main() -> None:
    """Measure everything and write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=7, help="pairs of floor and job (default %(default)s)")
    parser.add_argument("--idle", type=int, default=60, help="seconds to watch a computing job")
    parser.add_argument("--skip-openfoam", action="store_true")
    arguments = parser.parse_args()
    cluster = Cluster.find(os.environ.get("LAB_NAME", "lab"))
    results: dict[str, Any] = {"hosts": len(HOSTS), "cores": os.cpu_count(), "runs": arguments.runs}
    results.update(measure_start_and_end(cluster, arguments.runs))
    results["infra"] = measure_infra(cluster, arguments.runs)
    results["idle"] = measure_idle(cluster, arguments.idle)
    results["distribution"] = measure_distribution(cluster)
    if not arguments.skip_openfoam:
        results["pitzdaily"] = measure_openfoam(cluster)
    (ROOT / "bench/results.json").write_text(json.dumps(results, indent=2) + "\n")
    write_page(ROOT / "docs/performance.md", results)
    print(f"written: bench/results.json, docs/performance.md; start {results['ratio']['start']} x the floor")


# -- start, discovery, teardown ---------------------------------------------------------


def measure_start_and_end(cluster: Cluster, runs: int) -> dict[str, Any]:
    """Run floor and job in turns; the first pair warms up and is not counted."""
    floor: list[tuple[float, float]] = []
    jobs: list[dict[str, Any]] = []
    for number in range(runs + 1):
        say(f"start and end: pair {number} of {runs}")
        pair = (measure_floor(cluster), measure_job(cluster))
        if number:
            floor.append(pair[0])
            jobs.append(pair[1])
    start = [job["start"] for job in jobs]
    teardown = [job["phases"]["teardown"] for job in jobs]
    return {
        "floor": {"run": spread([f[0] for f in floor]), "rm": spread([f[1] for f in floor])},
        "start": spread(start),
        "discovery": spread([job["discovery"] for job in jobs]),
        "teardown": spread(teardown),
        "phases": {
            name: spread([job["phases"].get(name, 0.0) for job in jobs])
            for name in ("prepare", "start", "discovery", "teardown")
        },
        "ratio": {
            "start": round(statistics.median(s / f[0] for s, f in zip(start, floor, strict=True)), 2),
            "teardown": round(statistics.median(t / f[1] for t, f in zip(teardown, floor, strict=True)), 2),
        },
    }


def measure_floor(cluster: Cluster) -> tuple[float, float]:
    """Start and remove one plain container on each host, over ssh, all hosts at once."""
    image = json.loads((IMAGES / "out/images.json").read_text())["mpihello:1"]["id"]
    run = f"docker run -d --name floor --network none --entrypoint sleep {image} 60"
    on_all(cluster, "docker rm -f floor 2>/dev/null || true")
    return timed(lambda: on_all(cluster, run)), timed(lambda: on_all(cluster, "docker rm -f floor"))


def measure_job(cluster: Cluster) -> dict[str, Any]:
    """Run a small job; its first line of output ends the start."""
    process, begin = start_wrapper(cluster, "echo first; cat /run/dockerjob/node/agent.log; sleep 1.5")
    assert process.stdout is not None  # noqa: S101  # stdout=PIPE
    first = process.stdout.readline()
    start = time.monotonic() - begin
    started = max(container_started(cluster, host) for host in HOSTS)
    # Not communicate(): it would miss what readline() has read ahead.
    log = process.stdout.read()
    if process.wait(120) or first != "first\n":
        raise RuntimeError(f"the job failed: {process.returncode}: {first}{log}")
    ready = next(line for line in log.splitlines() if "READY STATE FOR ALL NODES" in line)
    stamp = datetime.fromisoformat(" ".join(ready.split()[:2])).astimezone()
    return {
        "start": start,
        "discovery": stamp.timestamp() - started,
        "phases": last_report(cluster)["phases"],
    }


def container_started(cluster: Cluster, host: str) -> float:
    """Return when the one job container of a host was started, in seconds since the epoch."""
    [name] = cluster.run(host, "docker", "ps", "-q", "--filter", "label=dockerjob.job").split()
    text = cluster.run(host, "docker", "inspect", "--format", "{{.State.StartedAt}}", name).strip()
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*Z$", r"\1+00:00", text)).timestamp()


def last_report(cluster: Cluster) -> dict[str, Any]:
    """Return the newest record of the broker's log."""
    lines = cluster.path("node1", "/var/log/dockerjob/jobs.jsonl").read_text().splitlines()
    record: dict[str, Any] = json.loads(lines[-1])
    return record


def measure_infra(cluster: Cluster, runs: int) -> dict[str, Any]:
    """Start the same job from the same image in turns, with its own layer and with the host's infrastructure."""
    seconds: dict[str, list[float]] = {"image": [], "injected": []}
    for number in range(runs + 1):
        say(f"layer and injected: pair {number} of {runs}")
        # Each is the first of its pair every other time.
        for infra in sorted(seconds, reverse=bool(number % 2)):
            with infrastructure(cluster, infra):
                start = measure_job(cluster)["start"]
            if number:
                seconds[infra].append(start)
    differences = [b - a for a, b in zip(seconds["image"], seconds["injected"], strict=True)]
    return {"pairs": runs, "difference": spread(differences)} | {
        infra: spread(values) for infra, values in seconds.items()
    }


@contextmanager
def infrastructure(cluster: Cluster, choice: str) -> Iterator[None]:
    """Have jobs of mpihello take their infrastructure from where *choice* says."""
    path = cluster.path("node1", CONFIG)
    before = path.read_text()
    config = yaml.safe_load(before)
    config["applications"]["mpihello:1"]["infra"] = choice
    # In place: it is the broker's to read, and keeps its owner and mode.
    path.write_text(yaml.safe_dump(config))
    try:
        yield
    finally:
        path.write_text(before)


# -- while COMMAND computes -------------------------------------------------------------


def measure_idle(cluster: Cluster, seconds: int) -> dict[str, Any]:
    """Watch everything of ours while COMMAND does nothing, for *seconds*."""
    say(f"a computing job: watching our processes for {seconds} s")
    process, _ = start_wrapper(cluster, f"echo first; exec sleep {seconds + 20}")
    assert process.stdout is not None  # noqa: S101  # stdout=PIPE
    process.stdout.readline()
    time.sleep(5)
    before = {host: processes(cluster, host) for host in HOSTS}
    time.sleep(seconds)
    after = {host: processes(cluster, host) for host in HOSTS}
    process.terminate()
    process.communicate(timeout=60)
    return {host: compare(before[host], after[host], seconds) for host in HOSTS}


OURS = {
    "container": ("supervisord", "dockerjob_agent", "dockerjob-agent", "/usr/sbin/sshd -D -f /run/dockerjob"),
    "guard": (f"{node_program.directory()} guard", "sshd: root"),
    "relay": ("haproxy",),
    "wrapper and broker": ("hpc_submit_dockerjob", "dockerjob-broker", "/var/lib/dockerjob/run/"),
}


def processes(cluster: Cluster, host: str) -> dict[int, dict[str, Any]]:
    """Return our processes on a host: CPU seconds, proportional memory, and which part they are."""
    namespace = os.readlink(f"/proc/{cluster.pids[host]}/ns/net")
    mounts = os.readlink(f"/proc/{cluster.pids[host]}/ns/uts")
    found: dict[int, dict[str, Any]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            inside = os.readlink(entry / "ns/net") == namespace or os.readlink(entry / "ns/uts") == mounts
            contained = (
                "docker" in (entry / "cgroup").read_text() and f"/{host}/" in (entry / "cgroup").read_text()
            )
            part = next((part for part, marks in OURS.items() if any(mark in words for mark in marks)), None)
            if part is None or not (inside or contained):
                continue
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            memory = re.search(r"^Pss:\s+(\d+)", (entry / "smaps_rollup").read_text(), re.MULTILINE)
        except OSError:
            continue
        cpu = (int(fields[11]) + int(fields[12])) / TICKS
        found[int(entry.name)] = {"part": part, "cpu": cpu, "kib": int(memory[1]) if memory else 0}
    return found


def compare(
    before: dict[int, dict[str, Any]], after: dict[int, dict[str, Any]], seconds: int
) -> dict[str, dict[str, float]]:
    """Add up per part: CPU seconds per minute, and memory in MB."""
    totals: dict[str, dict[str, float]] = {}
    for pid, now in after.items():
        total = totals.setdefault(now["part"], {"cpu_seconds_per_minute": 0.0, "memory_mb": 0.0})
        used = now["cpu"] - before.get(pid, {"cpu": 0.0})["cpu"]
        total["cpu_seconds_per_minute"] += used * 60 / seconds
        total["memory_mb"] += now["kib"] / 1024
    return {part: {key: round(value, 3) for key, value in total.items()} for part, total in totals.items()}


# -- OpenFOAM ---------------------------------------------------------------------------


def measure_openfoam(cluster: Cluster) -> dict[str, Any]:
    """Run pitzDaily in containers and on the bare hosts, and compare the residuals."""
    say("pitzDaily: in containers")
    if cluster.submit(PREPARE, timeout=900).status:
        raise RuntimeError("pitzDaily could not be prepared")
    contained = cluster.submit(PITZDAILY, timeout=900)
    say("pitzDaily: the same ranks on the bare hosts")
    bare = run_bare(cluster)
    mine, theirs = residuals(contained.out), residuals(bare)
    return {
        "contained_seconds": execution_time(contained.out),
        "bare_seconds": execution_time(bare),
        "residual_lines": len(mine),
        "residuals_identical": mine == theirs and len(mine) > 0,
        "converged": "SIMPLE solution converged" in contained.out,
    }


def run_bare(cluster: Cluster) -> str:
    """Run the solver with the image's files on the bare hosts: no container, network or agent of ours."""
    script = ROOT / "bench/bare_openfoam.sh"
    return cluster.run("node1", "bash", "-c", script.read_text())


def residuals(output: str) -> list[str]:
    """Return the solver's lines that hold numbers of the solution."""
    return [line for line in output.splitlines() if "Solving for" in line or "continuity errors" in line]


def execution_time(output: str) -> float:
    """Return the solver's own last ClockTime, in seconds."""
    return float(re.findall(r"ExecutionTime = ([0-9.]+) s", output)[-1])


if __name__ == "__main__":
    main()
