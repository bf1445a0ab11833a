#!/usr/bin/env bash
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# build_program.sh SOURCE ARCHIVE: packs plugins/module_utils as a Python program. The file
# that starts it comes last, so a program that is half unpacked counts as not installed.
set -euo pipefail
source=$1 archive=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022

mkdir "$work/dockerjob_core"
cp "$source"/*.py "$work/dockerjob_core"
printf 'from dockerjob_core.node_program import main\n\nmain()\n' >"$work/__main__.py"
mkdir -p "$(dirname "$archive")"
tar -C "$work" --owner=root --group=root --sort=name -cf "$archive.$$" dockerjob_core __main__.py
mv "$archive.$$" "$archive"
