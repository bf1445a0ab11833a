#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
#
# fuzz.sh [EXAMPLES]: the property tests with many more examples, new ones in each run.
set -euo pipefail
cd "$(dirname "$0")/.."
EXAMPLES=${1:-5000} HYPOTHESIS_PROFILE=search exec .venv/bin/pytest -q --timeout=0 tests/unit/test_fuzz_*.py
