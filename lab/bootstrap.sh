#!/usr/bin/env bash
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# bootstrap.sh [PACKAGE ...]
#
# Makes a Debian 12 machine ready to work on the project: Debian packages (and those given),
# the Python environment .venv from the lock file, and .build/ansible_collections, where
# Ansible finds this checkout as the collection hpc.dockerjob. Idempotent; fast when done.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  acl arping busybox-static ca-certificates debootstrap docker-registry docker.io etcd-client etcd-server ethtool fakeroot
  gcc haproxy iproute2 iptables iputils-ping make mmdebstrap munge netcat-openbsd openssh-client
  openssh-server openvswitch-switch procps python3 python3-dev python3-docker python3-etcd3
  python3-netaddr python3-pip python3-venv rsync skopeo slurm-client slurmctld slurmd sudo supervisor tcpdump tini util-linux "$@"
)

step() { printf '==> %s\n' "$*"; }

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if ((${#missing[@]})); then
  step "installing ${#missing[@]} Debian packages"
  # The lab starts its own daemons; the packages must not start any on this machine.
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update
  apt-get -qq install --yes --no-install-recommends "${missing[@]}" >.bootstrap.log 2>&1 ||
    { cat .bootstrap.log >&2; exit 1; }
  rm -f .bootstrap.log
fi

lock=requirements-dev.lock
if ! cmp -s "$lock" .venv/installed.lock; then
  step "installing the Python packages of $lock into .venv (a minute or two)"
  [[ -x .venv/bin/python ]] || python3.11 -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check --use-pep517 -r "$lock"
  .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
  cp "$lock" .venv/installed.lock
fi

mkdir -p .build/ansible_collections/hpc
ln -sfn ../../.. .build/ansible_collections/hpc/dockerjob
# For mypy: plugins/module_utils under the name that it is installed as.
mkdir -p .build/python
ln -sfn ../../plugins/module_utils .build/python/dockerjob_core
