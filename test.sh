#!/usr/bin/env bash
# The tests and checks, with this machine's Python, in about a minute.
# --all: also with Docker, with each stack of requirements/stacks that this machine has a Python for, with more
# generated cases, and with coverage.
set -euo pipefail
cd "$(dirname "$0")"
. requirements/install.sh
logs=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -r "$logs"' EXIT
in_the_background() { # name, command...: what it says is shown if it fails
    local name=$1
    shift
    "$@" >"$logs/$name" 2>&1 || { cat "$logs/$name" >&2; exit 1; }
}
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "The tests need Python 3.11 or newer."
failed=0 options=() missing=() installing=() jobs=()

[[ ${1:-} =~ ^(--all)?$ ]] || fail "./test.sh takes no option but --all."

install examples/ocr/requirements.txt requirements/devserver.txt requirements/test.txt
in_the_background checks sh -c ".venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy ." &
jobs+=($!)
if [ "${1:-}" = --all ]; then
    in_the_background docker .venv/bin/python -m pytest --all tests/test_docker.py & # first, as it takes longest
    jobs+=($!)
    options=(--all --cov --ignore=tests/test_docker.py --hypothesis-profile=thorough "--stack=$python")
    versions=$(pyenv versions --bare 2>/dev/null | tr '\n' ':') || true
    for file in requirements/stacks/*.txt; do
        name=$(basename "$file" .txt)
        if PYENV_VERSION=$versions "python${name%%-*}" -V >/dev/null 2>&1; then
            options+=("--stack=$PWD/.venv/stacks/$name/bin/python")
            PYENV_VERSION=$versions install_stack "$file" &
            installing+=($!)
        else
            missing+=("$name")
        fi
    done
fi
[ ${#missing[@]} = 0 ] || echo "This machine has no Python (pyenv install) for the stacks ${missing[*]}."
for job in "${installing[@]}"; do wait "$job"; done
.venv/bin/python -m pytest -n "$((2 * $(getconf _NPROCESSORS_ONLN)))" --dist worksteal --instafail \
    "${options[@]}" tests | tee "$logs/tests" || failed=1
for job in "${jobs[@]}"; do wait "$job" || failed=1; done
[ "${1:-}" != --all ] || echo "With Docker: $(tail -n 1 "$logs/docker")"
[ $failed = 0 ] || echo "There are failures." >&2
tail -n 1 "$logs/tests"
exit $failed
