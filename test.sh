#!/usr/bin/env bash
# All tests and checks.
set -euo pipefail
cd "$(dirname "$0")"
. requirements/install.sh
install examples/ocr/requirements.txt requirements/test.txt
bin=$(dirname "$python")
"$bin/ruff" check .
"$bin/mypy" .
"$bin/coverage" erase
"$bin/coverage" run -m pytest "$@"
"$bin/coverage" combine --quiet
"$bin/coverage" report
