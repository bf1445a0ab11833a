# Copyright: the hpc.dockerjob authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images as others ship them, to try the portable infrastructure in: none has ssh, Python or certificates.

Their packages are unpacked and not installed, so that nothing comes along but what is named.
"""

from __future__ import annotations

_EXTRACT = (
    "mmdebstrap",
    "--quiet",
    "--variant=extract",
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc")),
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/lib/x86_64-linux-gnu/gconv/*",
    '--aptopt=Acquire::Languages "none"',
    '--extract-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"',
)
_BUSYBOX = '--extract-hook=mkdir -p "$1/sbin" "$1/usr/sbin" && chroot "$1" /bin/busybox --install -s'

FOREIGN = {
    "foreign:minimal": (*_EXTRACT, "--include=dash,coreutils,grep", "bookworm", "-"),
    "foreign:glibc": (*_EXTRACT, "--include=bash,dash,coreutils,grep,libc-bin", "trixie", "-"),
    "foreign:musl": (*_EXTRACT, "--include=busybox-static,musl", _BUSYBOX, "bookworm", "-"),
}
"""Command lines that write an image's files as a tar archive: Debian 12 without bash, a newer glibc, no glibc."""
