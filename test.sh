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
        options=(--ignore=tests/test_docker.py --hypothesis-profile=thorough "--stack=$python")
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

log=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -r "$log"' EXIT
in_the_background() { # name, command...: what it says is shown if it fails
    local name=$1
    shift
    "$@" >"$log/$name" 2>&1 || { cat "$log/$name" >&2; exit 1; }
}
checks=".venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy ."
failed=0 jobs=()
in_the_background checks sh -c "$checks" &
jobs+=($!)
if [ "${1:-}" = --all ]; then
    in_the_background docker .venv/bin/python -m pytest --all tests/test_docker.py &
    jobs+=($!)
fi
.venv/bin/python -m pytest -n "$((2 * $(getconf _NPROCESSORS_ONLN)))" --dist worksteal --cov --instafail \
    "${options[@]}" tests | tee "$log/tests" || failed=1
for job in "${jobs[@]}"; do wait "$job" || failed=1; done
[ "${1:-}" != --all ] || echo "With Docker: $(tail -n 1 "$log/docker")"
[ $failed = 0 ] || echo "There are failures." >&2
tail -n 1 "$log/tests"
exit $failed
