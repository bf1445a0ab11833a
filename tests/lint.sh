#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Static checks; each tool's settings are in pyproject.toml or in its dot file.
set -euo pipefail
cd "$(dirname "$0")/.."
export ANSIBLE_COLLECTIONS_PATH="$PWD/.build" PATH="$PWD/.venv/bin:$PATH"

run() { printf -- '--- %s\n' "$*"; "$@"; }

run ruff check .
run ruff format --check .
run mypy -p dockerjob -p dockerjob_core -p dockerjob_agent -p dockerjob_lab
run mypy tests/unit tests/security
run tests/sanity.sh
run yamllint --strict .
# Every tracked file that a shell runs, whatever its name; templates are no shell yet.
mapfile -t scripts < <(git ls-files -- ':!*.j2' | xargs -d '\n' \
  awk 'FNR == 1 && (/^#!.*[\/ ](ba|da)?sh( |$)/ || /^# shellcheck shell=/) { print FILENAME } { nextfile }')
run shellcheck "${scripts[@]}"
run ansible-lint --profile production --offline
printf -- '--- %s\n' "detect-secrets-hook --no-verify, over all tracked files"
git ls-files -z | xargs -0 detect-secrets-hook --no-verify
run tests/audit.sh
