#!/usr/bin/env python3
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the project's images from Debian packages and save them as archives.

    images/build.py [--out DIR] [--state DIR] [IMAGE ...]

An image is rebuilt when one of its inputs changed (its files, its parent, the agent);
otherwise nothing is started at all.  Result: ``<out>/<name>-<tag>.tar`` for ``docker load``
and ``<out>/images.json`` with the id of each, which is what a site pins.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from builder import STATE, BuildError, Docker, private_dockerd

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SUITE = "bookworm"
BASE = "base:12"
AGENT_PACKAGES = {
    "dockerjob_core": ROOT / "plugins/module_utils",
    "dockerjob_agent": ROOT / "agent/dockerjob_agent",
}

MMDEBSTRAP = (
    "mmdebstrap",
    "--quiet",
    "--variant=minbase",
    # Keep the licences, drop what nobody reads in a container; later installations obey it too.
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    '--aptopt=Acquire::Languages "none"',
    # The builder's own resolver and name have no place in an image.
    '--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"',
    SUITE,
    "-",
)


@dataclass(frozen=True)
class Recipe:
    """One image: what it is called, where its Dockerfile is, and whether jobs run in it."""

    reference: str
    directory: str | None
    infra: bool

    @property
    def archive_name(self) -> str:
        """File name of the saved image."""
        return self.reference.replace(":", "-") + ".tar"

    @property
    def application_reference(self) -> str:
        """Tag of the image before the infrastructure layer."""
        return f"dockerjob-build/{self.reference}" if self.infra else self.reference


RECIPES = (
    Recipe(BASE, None, infra=False),
    Recipe("etcd:3.4", "etcd", infra=False),
    Recipe("registry:2.8", "registry", infra=False),
    Recipe("shell:12", None, infra=True),
    Recipe("mpihello:1", "mpihello", infra=True),
    Recipe("openfoam:1912", "openfoam", infra=True),
)
"""In build order.  ``shell`` is the base with the infrastructure layer and no application."""


def say(text: str) -> None:
    """Print one progress line at once."""
    print(f"==> {text}", flush=True)


def input_files() -> Iterator[tuple[str, Path]]:
    """Yield every file that goes into some image, with the part it belongs to."""
    for part in ("infra", *(recipe.directory for recipe in RECIPES if recipe.directory)):
        for path in sorted((HERE / part).rglob("*")):
            if path.is_file():
                yield part, path
    for directory in AGENT_PACKAGES.values():
        for path in modules(directory):
            yield "infra", path


def modules(package: Path) -> list[Path]:
    """Return what a container needs of a package; what is below it (batch systems) is the submit hosts'."""
    return sorted(package.glob("*.py"))


def input_hashes() -> dict[str, str]:
    """Map each image to the hash of all its inputs; equal hash means nothing to build."""
    parts: dict[str, list[bytes]] = {}
    for part, path in input_files():
        parts.setdefault(part, []).append(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    base = repr(MMDEBSTRAP).encode()
    infra = [*parts["infra"], repr(sys.version_info[:2]).encode()]
    return {
        recipe.reference: _digest(
            [base, *parts.get(recipe.directory or "", []), *(infra if recipe.infra else [])]
        )
        for recipe in RECIPES
    }


def _digest(chunks: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for chunk in chunks:
        total.update(hashlib.sha256(chunk).digest())
    return total.hexdigest()


class Build:
    """One run: turns out-of-date recipes into archives and records them in images.json."""

    def __init__(self, state: Path, out: Path) -> None:
        """Remember the directories; nothing is touched before :meth:`run`."""
        self._state = state
        self._out = out
        self._record_path = out / "images.json"
        self._hashes = input_hashes()

    def run(self, wanted: Iterable[str]) -> None:
        """Build what is out of date among *wanted*."""
        chosen = set(wanted)
        record = self._read_record()
        stale = [
            recipe for recipe in RECIPES if recipe.reference in chosen and not self._fresh(recipe, record)
        ]
        for recipe in RECIPES:
            if recipe.reference in chosen and recipe not in stale:
                say(f"{recipe.reference}: up to date")
        if not stale:
            return
        self._out.mkdir(parents=True, exist_ok=True)
        with private_dockerd(self._state / "docker") as docker:
            self._ensure_base(docker)
            for recipe in stale:
                started = time.monotonic()
                record[recipe.reference] = self._build(docker, recipe)
                self._write_record(record)
                say(f"{recipe.reference}: done in {time.monotonic() - started:.0f} s")

    def _read_record(self) -> dict[str, dict[str, str]]:
        if not self._record_path.exists():
            return {}
        record: dict[str, dict[str, str]] = json.loads(self._record_path.read_text())
        return record

    def _write_record(self, record: dict[str, dict[str, str]]) -> None:
        new = self._record_path.with_suffix(".new")
        new.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        new.replace(self._record_path)

    def _fresh(self, recipe: Recipe, record: dict[str, dict[str, str]]) -> bool:
        entry = record.get(recipe.reference, {})
        return (
            entry.get("inputs") == self._hashes[recipe.reference] and Path(entry.get("archive", "")).is_file()
        )

    def _ensure_base(self, docker: Docker) -> None:
        """Bootstrap the base image, unless this data root has it from the same recipe."""
        # The tag carries the recipe, so a changed recipe is never taken for the old image.
        pinned = f"dockerjob-build/base:{self._hashes[BASE][:12]}"
        if docker.image_id(pinned) is None:
            say(f"{BASE}: bootstrapping Debian {SUITE}")
            with subprocess.Popen(MMDEBSTRAP, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as bootstrap:
                assert bootstrap.stdout is not None  # noqa: S101 (it was asked for as a pipe)
                docker.run(
                    "import", "--change", 'CMD ["/bin/bash"]', "-", pinned, stdin=bootstrap.stdout.fileno()
                )
            if bootstrap.returncode:
                docker.run("rmi", pinned)
                raise BuildError(f"mmdebstrap failed with status {bootstrap.returncode}; see its lines above")
        docker.run("tag", pinned, BASE)

    def _build(self, docker: Docker, recipe: Recipe) -> dict[str, str]:
        log = self._state / "logs" / f"{recipe.archive_name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        application = BASE
        if recipe.directory:
            application = recipe.application_reference
            say(f"{recipe.reference}: building the application image (log: {log})")
            with self._context(recipe.directory, {}) as context:
                self._docker_build(docker, application, context, f"BASE_IMAGE={BASE}", log)
        if recipe.infra:
            say(f"{recipe.reference}: adding the infrastructure layer")
            with self._context("infra", AGENT_PACKAGES) as context:
                self._docker_build(docker, recipe.reference, context, f"APPLICATION_IMAGE={application}", log)
        return self._save(docker, recipe)

    def _docker_build(self, docker: Docker, tag: str, context: Path, argument: str, log: Path) -> None:
        # The builder has no bridge; its steps use the machine's own network.
        docker.run(
            "build",
            "--network=host",
            "--force-rm",
            "--tag",
            tag,
            "--build-arg",
            argument,
            str(context),
            log=log,
        )

    def _save(self, docker: Docker, recipe: Recipe) -> dict[str, str]:
        archive = self._out / recipe.archive_name
        partial = archive.with_suffix(".tar.new")
        docker.run("save", "--output", str(partial), recipe.reference)
        partial.replace(archive)
        identity = docker.image_id(recipe.reference)
        if identity is None:
            raise BuildError(f"{recipe.reference} vanished from the builder while it was saved")
        return {"archive": str(archive), "id": identity, "inputs": self._hashes[recipe.reference]}

    @contextlib.contextmanager
    def _context(self, directory: str, packages: Mapping[str, Path]) -> Iterator[Path]:
        """Lay out a build context: the image's files, its wheels, and *packages*; times are fixed for the cache."""
        source = HERE / directory
        with tempfile.TemporaryDirectory(prefix="dockerjob-context-") as name:
            context = Path(name)
            shutil.copytree(source, context, dirs_exist_ok=True)
            if (source / "requirements.txt").exists():
                shutil.copytree(self._wheels(source / "requirements.txt"), context / "wheels")
            for package, files in packages.items():
                (context / package).mkdir()
                for path in modules(files):
                    shutil.copy(path, context / package)
            for path in context.rglob("*"):
                os.utime(path, (0, 0))
            yield context

    def _wheels(self, requirements: Path) -> Path:
        """Make wheels of pinned requirements, once per content of the file."""
        version = "".join(str(part) for part in sys.version_info[:2])
        target = self._state / f"wheels-{version}-{_digest([requirements.read_bytes()])[:12]}"
        if not target.is_dir():
            say(f"collecting the wheels of {requirements.relative_to(ROOT)}")
            partial = target.with_suffix(".new")
            shutil.rmtree(partial, ignore_errors=True)
            subprocess.run(
                [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
                 "--wheel-dir", str(partial), "--requirement", str(requirements)],
                check=True,
            )  # fmt: skip
            partial.rename(target)
        return target


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and build; return the exit status."""
    names = [recipe.reference for recipe in RECIPES]
    parser = argparse.ArgumentParser(description="Build the project's images.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"default: all of {', '.join(names)}")
    parser.add_argument(
        "--state", type=Path, default=STATE, help="builder's data root and caches (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="directory of the archives and images.json (STATE/out)")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.images) - set(names))
    if unknown:
        parser.error(f"no such image: {', '.join(unknown)} (there are: {', '.join(names)})")
    try:
        Build(options.state, options.out or options.state / "out").run(options.images or names)
    except (BuildError, subprocess.CalledProcessError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
