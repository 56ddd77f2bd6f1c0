#!/usr/bin/env bash
# All tests and checks: first with this machine's Python, then with each stack of requirements/stacks that it has.
set -euo pipefail
cd "$(dirname "$0")"
. requirements/install.sh
install examples/ocr/requirements.txt requirements/test.txt
bin=$(dirname "$python")
"$bin/ruff" check .
"$bin/mypy" .
"$bin/coverage" erase
"$bin/coverage" run -m pytest
"$bin/coverage" combine --quiet
"$bin/coverage" report

if command -v pyenv >/dev/null; then
    PYENV_VERSION=$(pyenv versions --bare | tr '\n' ':')
    export PYENV_VERSION
fi
"$bin/nox" --no-error-on-missing-interpreters -f requirements/noxfile.py
