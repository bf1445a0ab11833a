#!/usr/bin/env python3
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the project's images from Debian packages and save them as archives.

    images/build.py [--out DIR] [--state DIR] [IMAGE ...]

An image is rebuilt when one of its inputs changed (its files, its parent, the agent);
otherwise nothing is started at all.  Result: ``<out>/<name>-<tag>.tar`` for ``docker load``
and ``<out>/images.json`` with the id of each, which is what a site pins.  ``portable`` is no image:
it is the infrastructure as an archive for the hosts, ``<out>/infra-<version>.tar.gz``, in ``<out>/infra.json``.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from builder import STATE, BuildError, Docker, private_dockerd
from foreign import FOREIGN
from reproducible import EPOCH, rewrite

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SUITE = "bookworm"
BASE = "base:12"
PORTABLE = "portable"
PORTABLE_FROM = "shell:12"
"""The image whose infrastructure layer the portable one is made from."""
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
    # Else each later installation leaves its packages in the image; as --aptopt it would hit mmdebstrap's own.
    """--customize-hook=echo 'APT::Keep-Downloaded-Packages "false";' >"$1/etc/apt/apt.conf.d/98no-packages\"""",
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
    *(Recipe(name, None, infra=False) for name in FOREIGN),
)
"""In build order.  ``shell`` is the base with the infrastructure layer and no application."""

NAMES = (*(recipe.reference for recipe in RECIPES), PORTABLE)


def say(text: str) -> None:
    """Print one progress line at once."""
    print(f"==> {text}", flush=True)


def input_files() -> Iterator[tuple[str, Path]]:
    """Yield every file that goes into some image, with the part it belongs to."""
    for part in ("infra", PORTABLE, *(recipe.directory for recipe in RECIPES if recipe.directory)):
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
    base = repr((MMDEBSTRAP, EPOCH)).encode()
    infra = [*parts["infra"], repr(sys.version_info[:2]).encode()]
    images = {
        recipe.reference: _digest(
            [
                repr(FOREIGN[recipe.reference]).encode() if recipe.reference in FOREIGN else base,
                *parts.get(recipe.directory or "", []),
                *(infra if recipe.infra else []),
            ]
        )
        for recipe in RECIPES
    }
    return {**images, PORTABLE: _digest([base, *infra, *parts[PORTABLE]])}


def _digest(chunks: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for chunk in chunks:
        total.update(hashlib.sha256(chunk).digest())
    return total.hexdigest()


def bootstrap(docker: Docker, command: Sequence[str], tag: str, change: str, directory: Path) -> Path:
    """Make an image of the tar that *command* (mmdebstrap) writes, and return its archive in *directory*.

    Args:
        docker: the builder; it keeps nothing.
        command: the command line, which gets ``SOURCE_DATE_EPOCH``.
        tag: name of the image in the archive.
        change: a line of a Dockerfile for the configuration, as ``docker import --change`` takes it.
        directory: where the archive goes.

    The same packages give the same id: mmdebstrap and :func:`rewrite` leave no time after :data:`EPOCH`.

    Raises:
        BuildError: *command* failed.
    """
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment
    ) as process:
        assert process.stdout is not None  # noqa: S101 (it was asked for as a pipe)
        docker.run("import", "--change", change, "-", tag, stdin=process.stdout.fileno())
    saved, archive = directory / "saved.tar", directory / "image.tar"
    if not process.returncode:
        docker.run("save", "--output", str(saved), tag)
    docker.run("rmi", tag)
    if process.returncode:
        raise BuildError(f"mmdebstrap failed with status {process.returncode}; see its lines above")
    rewrite(saved, archive)
    saved.unlink()
    return archive


def _read(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    record: dict[str, dict[str, str]] = json.loads(path.read_text())
    return record


def _write(path: Path, record: Mapping[str, Mapping[str, str]]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    new.replace(path)


class Build:
    """One run: turns out-of-date recipes into archives and records them in images.json."""

    def __init__(self, state: Path, out: Path) -> None:
        """Remember the directories; nothing is touched before :meth:`run`."""
        self._state = state
        self._out = out
        self._record_path = out / "images.json"
        self._portable_path = out / "infra.json"
        self._hashes = input_hashes()

    def run(self, wanted: Iterable[str]) -> None:
        """Build what is out of date among *wanted*."""
        chosen = set(wanted)
        record = _read(self._record_path)
        stale = [
            recipe for recipe in RECIPES if recipe.reference in chosen and not self._fresh(recipe, record)
        ]
        for recipe in RECIPES:
            if recipe.reference in chosen and recipe not in stale:
                say(f"{recipe.reference}: up to date")
        portable = PORTABLE in chosen and not self._portable_fresh()
        if PORTABLE in chosen and not portable:
            say(f"{PORTABLE}: up to date")
        if not stale and not portable:
            return
        self._out.mkdir(parents=True, exist_ok=True)
        with private_dockerd(self._state / "docker") as docker:
            self._ensure_base(docker)
            for recipe in stale:
                started = time.monotonic()
                record[recipe.reference] = self._build(docker, recipe)
                _write(self._record_path, record)
                say(f"{recipe.reference}: done in {time.monotonic() - started:.0f} s")
            if portable:
                started = time.monotonic()
                _write(self._portable_path, {PORTABLE: self._build_portable(docker)})
                say(f"{PORTABLE}: done in {time.monotonic() - started:.0f} s")

    def _fresh(self, recipe: Recipe, record: dict[str, dict[str, str]]) -> bool:
        entry = record.get(recipe.reference, {})
        return (
            entry.get("inputs") == self._hashes[recipe.reference] and Path(entry.get("archive", "")).is_file()
        )

    def _portable_fresh(self) -> bool:
        entry = _read(self._portable_path).get(PORTABLE, {})
        return entry.get("inputs") == self._hashes[PORTABLE] and Path(entry.get("archive", "")).is_file()

    def _ensure_base(self, docker: Docker) -> None:
        """Bootstrap the base image, unless this data root has it from the same recipe."""
        # The tag carries the recipe, so a changed recipe is never taken for the old image.
        pinned = f"dockerjob-build/base:{self._hashes[BASE][:12]}"
        if docker.image_id(pinned) is None:
            say(f"{BASE}: bootstrapping Debian {SUITE}")
            self._bootstrap(docker, MMDEBSTRAP, pinned, 'CMD ["/bin/bash"]')
        docker.run("tag", pinned, BASE)

    def _bootstrap(self, docker: Docker, command: Sequence[str], tag: str, change: str) -> None:
        """Make an image of the tar that *command* writes, and have this data root load it."""
        with tempfile.TemporaryDirectory(prefix="base-", dir=self._state) as directory:
            docker.run("load", "--input", str(bootstrap(docker, command, tag, change, Path(directory))))

    def _build_portable(self, docker: Docker) -> dict[str, str]:
        """Make the infrastructure layer of an image into an archive that runs in any other."""
        say(f"{PORTABLE}: collecting the infrastructure of {PORTABLE_FROM}")
        log = self._state / "logs" / f"{PORTABLE}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        # Also where it was built before: the builder's data root need not have it any more.
        with self._context("infra", AGENT_PACKAGES) as context:
            self._docker_build(docker, PORTABLE_FROM, context, f"APPLICATION_IMAGE={BASE}", log)
        tag = f"dockerjob-build/{PORTABLE}"
        with self._context(PORTABLE, {}) as context:
            self._docker_build(docker, tag, context, f"INFRA_IMAGE={PORTABLE_FROM}", log)
        version = self._hashes[PORTABLE][:12]
        archive = self._out / f"infra-{version}.tar.gz"
        partial = archive.with_suffix(".new")
        container = docker.run("create", tag, "/bin/true").strip()
        try:
            docker.run("cp", f"{container}:/portable.tar.gz", str(partial))
        finally:
            docker.run("rm", container)
        partial.chmod(0o644)
        partial.replace(archive)
        return {"archive": str(archive), "version": version, "inputs": self._hashes[PORTABLE]}

    def _build(self, docker: Docker, recipe: Recipe) -> dict[str, str]:
        log = self._state / "logs" / f"{recipe.archive_name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        application = BASE
        if recipe.reference in FOREIGN:
            say(f"{recipe.reference}: unpacking its packages")
            self._bootstrap(docker, FOREIGN[recipe.reference], recipe.reference, 'CMD ["/bin/sh"]')
            return self._save(docker, recipe)
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
    parser = argparse.ArgumentParser(description="Build the project's images.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"default: all of {', '.join(NAMES)}")
    parser.add_argument(
        "--state", type=Path, default=STATE, help="builder's data root and caches (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="directory of the archives and images.json (STATE/out)")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.images) - set(NAMES))
    if unknown:
        parser.error(f"no such image: {', '.join(unknown)} (there are: {', '.join(NAMES)})")
    try:
        Build(options.state, options.out or options.state / "out").run(options.images or NAMES)
    except (BuildError, subprocess.CalledProcessError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
