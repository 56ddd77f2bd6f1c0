#!/usr/bin/env bash
# The tests and checks, with this machine's Python, in about two minutes.
# --all: also with Docker, with each stack of requirements/stacks that this machine has a Python for, and more
# generated cases.
set -euo pipefail
cd "$(dirname "$0")"
. requirements/install.sh
install examples/ocr/requirements.txt requirements/test.txt
options=() missing=()

case ${1:-} in
    '') ;;
    --all)
        if command -v pyenv >/dev/null; then
            PYENV_VERSION=$(pyenv versions --bare | tr '\n' ':')
            export PYENV_VERSION
        fi
        options=(--all --hypothesis-profile=thorough "--stack=$python")
        for file in requirements/stacks/*.txt; do
            name=$(basename "$file" .txt)
            if "python${name%%-*}" -V >/dev/null 2>&1; then
                options+=("--stack=$PWD/.venv/stacks/$name/bin/python")
                install_stack "$file" &
            else
                missing+=("$name")
            fi
        done
        for job in $(jobs -p); do wait "$job"; done
        unset PYENV_VERSION # python3 is this machine's again
        ;;
    *) fail "./test.sh takes no option but --all." ;;
esac
[ ${#missing[@]} = 0 ] || export MISSING_STACKS="${missing[*]}"

checks() {
    .venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy .
}
log=$(mktemp)
trap 'kill "$checks" 2>/dev/null || true; rm -f "$log"' EXIT
{ checks >"$log" 2>&1 || { cat "$log" >&2; exit 1; }; } &
checks=$! failed=0
.venv/bin/python -m pytest -n "$((2 * $(getconf _NPROCESSORS_ONLN)))" --dist loadgroup --instafail --cov "${options[@]}" tests || failed=1
wait $checks || failed=1
exit $failed
