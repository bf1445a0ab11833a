#!/usr/bin/env python3
# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take the times out of an image, so that the same content has the same id.

    images/reproducible.py IMAGE.tar OUT.tar

IMAGE.tar is what ``docker save`` wrote of one image.  Docker's classic builder stamps each layer, each file that
a step made and the configuration with the time of day, and keeps the name of the machine; this rewrites all of
them, and prints the id that ``docker load`` will show.  Times later than SOURCE_DATE_EPOCH become that
(https://reproducible-builds.org/specs/source-date-epoch/); what was written into files stays as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "1686355200"))
"""Seconds since 1970; the day of Debian 12's release."""

TIMES = frozenset(("mtime", "atime", "ctime"))

OF_THE_BUILD = ("container", "container_config", "parent")
"""What the configuration says of how it was made; nothing reads it (it is absent in OCI's specification)."""


def rewrite(source: Path, target: Path, epoch: int = EPOCH) -> str:
    """Write the image in *source* to *target* without the times after *epoch*, and return its id.

    Raises:
        ValueError: *source* holds no image, or several.
    """
    with tarfile.open(source) as old, tempfile.TemporaryDirectory(dir=target.parent) as directory:
        manifest = json.load(_content(old, "manifest.json"))
        if len(manifest) != 1:
            raise ValueError(f"{source} holds {len(manifest)} images; save one")
        config = json.load(_content(old, manifest[0]["Config"]))
        layers = {
            name: _rewrite_layer(_content(old, name), Path(directory), epoch)
            for name in manifest[0]["Layers"]
        }
        digests = [layers[name] for name in manifest[0]["Layers"]]
        text = json.dumps(_without_times(config, digests, epoch), sort_keys=True).encode()
        identity = hashlib.sha256(text).hexdigest()
        entry = {
            "Config": f"{identity}.json",
            "RepoTags": manifest[0]["RepoTags"],
            "Layers": [f"{digest}/layer.tar" for digest in digests],
        }
        with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as new:
            _add(new, f"{identity}.json", io.BytesIO(text), len(text), epoch)
            for digest in sorted(set(digests)):
                path = Path(directory, digest)
                with path.open("rb") as layer:
                    _add(new, f"{digest}/layer.tar", layer, path.stat().st_size, epoch)
            text = json.dumps([entry], sort_keys=True).encode()
            _add(new, "manifest.json", io.BytesIO(text), len(text), epoch)
    return f"sha256:{identity}"


def _content(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    """Return a file of the archive; a layer that comes twice is a link to the first."""
    try:
        content = archive.extractfile(name)
    except KeyError:
        content = None
    if content is None:
        raise ValueError(f"this is no archive of 'docker save': it has no {name}")
    return content


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes], size: int, epoch: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = size, epoch
    archive.addfile(member, content)


def _rewrite_layer(content: IO[bytes], directory: Path, epoch: int) -> str:
    """Write a layer to *directory* under its digest, and return that; order, owners, modes and xattrs stay."""
    partial = directory / "layer.new"
    with tarfile.open(fileobj=content) as old, tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as new:
        for member in old:
            data = old.extractfile(member) if member.isreg() else None
            member.mtime = min(int(member.mtime), epoch)
            member.pax_headers = {key: value for key, value in member.pax_headers.items() if key not in TIMES}
            new.addfile(member, data)
    with partial.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    partial.rename(directory / digest)
    return digest


def _without_times(config: Mapping[str, Any], digests: list[str], epoch: int) -> dict[str, Any]:
    """Return the image's configuration with fixed times, for the layers of *digests*."""
    stamp = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    kept = {key: value for key, value in config.items() if key not in OF_THE_BUILD}
    return {
        **kept,
        "created": stamp,
        "config": {**(config.get("config") or {}), "Hostname": "", "Image": ""},
        "history": [{**step, "created": stamp} for step in config.get("history") or ()],
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
    }


def main() -> int:
    """Rewrite the archive of the command line and print the image's id."""
    parser = argparse.ArgumentParser(description="Take the times out of an image.")
    parser.add_argument(
        "source", type=Path, metavar="IMAGE.tar", help="what 'docker save' wrote of one image"
    )
    parser.add_argument("target", type=Path, metavar="OUT.tar", help="for 'docker load'")
    options = parser.parse_args()
    try:
        print(rewrite(options.source, options.target))
    except (OSError, ValueError, tarfile.TarError) as error:
        parser.exit(1, f"reproducible.py: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
