#!/usr/bin/env bash
# Copyright: the hpc.dockerjob authors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Brings the lab LAB_NAME to the state of a cluster that is set up: hosts, images, roles.
# What has been applied already, from the same files to the same hosts, is not applied again.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${LAB_NAME:=lab}"
export LAB_NAME ANSIBLE_COLLECTIONS_PATH="$PWD/.build" PATH="$PWD/.venv/bin:$PATH"
inventory=.lab/$LAB_NAME/inventory.yml
stamp=.lab/$LAB_NAME/cluster.stamp

step() { printf '==> %s\n' "$*" >&2; }

# One line per task that did something or failed, instead of pages of "ok".
playbook() { ANSIBLE_DISPLAY_OK_HOSTS=no ANSIBLE_DISPLAY_SKIPPED_HOSTS=no ansible-playbook "$@" >&2; }

step "images: build what has changed"
python images/build.py >&2
step "lab '$LAB_NAME': hosts"
playbook playbooks/lab_up.yml

state() {
  python lab/lab.py --name "$LAB_NAME" status --json | python -c '
import json, sys
print(json.dumps([[h["name"], h["pid"]] for h in json.load(sys.stdin)["hosts"]]))'
  find roles plugins playbooks wrapper agent integration requirements.lock -type f -not -name '*.pyc' -print0 |
    sort -z | xargs -0 sha256sum
  sha256sum "${DOCKERJOB_LAB_IMAGES:-/var/lib/dockerjob-lab/images}"/out/{images,infra}.json
}
now=$(state | sha256sum)
if [[ $(cat "$stamp" 2>/dev/null) == "$now" ]]; then
  step "cluster: set up already (make cluster applies the playbook again)"
  exit
fi
step "cluster: playbooks/cluster_setup.yml, as an admin applies it (two or three minutes)"
playbook -i "$inventory" playbooks/cluster_setup.yml
state | sha256sum >"$stamp"
