#!/usr/bin/env bash
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# build_release.sh SOURCE PYTHON ARCHIVE: packs what a submit host needs into one archive,
# so that the host needs no package index and no compiler: wheels of the locked requirements
# and of the project, the collection, the files for the batch system, and the script that
# installs them.
set -euo pipefail
source=$1 python=$2 archive=$3

cache=$(dirname "$archive")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022
pip_wheel() { "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps "$@"; }

# The requirements change seldom, so their wheels are kept.
lock=$source/requirements.lock
tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
wheels=$cache/wheels-$tag-$(sha256sum <"$lock" | cut -c-12)
if [[ ! -d $wheels ]]; then
  pip_wheel --wheel-dir "$wheels.$$" --requirement "$lock"
  mv -T "$wheels.$$" "$wheels" 2>/dev/null || rm -rf "$wheels.$$"
fi

# Built from a copy: setuptools leaves its traces in the tree that it builds from.
mkdir -p "$cache" "$work/tree" "$work/release/wheels"
(cd "$source" && cp -R --parents pyproject.toml README.md LICENSE wrapper/dockerjob agent/dockerjob_agent \
  plugins/module_utils "$work/tree")
pip_wheel --no-build-isolation --wheel-dir "$work/release/wheels" "$work/tree"

cp "$wheels"/*.whl "$work/release/wheels"
cp "$lock" "$(dirname "$0")/install_release.sh" "$work/release"
collection=$work/release/ansible_collections/hpc/dockerjob
mkdir -p "$collection"
mkdir "$collection/playbooks"
cp -R "$source/integration" "$work/release"
cp -R "$source"/{galaxy.yml,meta,plugins} "$collection"
cp "$source"/playbooks/job_*.yml "$collection/playbooks"
# What tools left in the checkout.
find "$work/release" \( -name __pycache__ -o -name ".?*" \) -prune -exec rm -rf {} +
tar -C "$work/release" --owner=root --group=root --sort=name -cf "$archive.$$" .
mv "$archive.$$" "$archive"

find "$cache" -maxdepth 1 -name 'release-*.tar' -mtime +30 -delete
