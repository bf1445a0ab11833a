#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs molecule scenarios, all or the ones named.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
(($#)) || set -- cluster_setup job
for scenario in "$@"; do
  # Molecule's recap may call a failed run successful; its exit status is the truth.
  .venv/bin/molecule test --scenario-name "$scenario"
done
