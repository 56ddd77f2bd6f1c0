# shellcheck shell=bash
# Sourced by demo.sh and test.sh: install FILE... puts the requirements into .venv, once; $python is its Python.
# install_stack FILE does that for a stack that is found in models' images, into .venv/stacks.

python=$PWD/.venv/bin/python

fail() {
    echo "$*" >&2
    exit 1
}

make_venv() {
    local said
    "$python" -m pip --version >/dev/null 2>&1 && return
    command -v python3 >/dev/null || fail "python3 is missing: install Python 3.9 or newer."
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
        fail "$(python3 --version) is too old: install Python 3.9 or newer."
    echo "Making .venv"
    said=$(python3 -m venv --clear .venv 2>&1) || {
        echo "$said" >&2
        rm -rf .venv
        fail "python3 can't make a virtual environment: install its venv module ('apt install python3-venv' on Debian)."
    }
}

install() {
    local file log missing=no
    for file in "$@"; do [ -e "$(stamp .venv "$file")" ] || missing=yes; done
    [ $missing = yes ] || return 0
    make_venv
    echo "Installing $* into .venv (some minutes the first time)"
    log=$(mktemp)
    "$python" -m pip install --disable-pip-version-check "${@/#/-r}" >"$log" 2>&1 || {
        tail -n 5 "$log" >&2
        fail "pip could not install $*: is there a network? All that it said is in $log."
    }
    for file in "$@"; do touch "$(stamp .venv "$file")"; done
    rm "$log"
}

install_stack() { # with the Python that the file's name begins with
    local name folder
    name=$(basename "$1" .txt) folder=.venv/stacks/$(basename "$1" .txt)
    [ -e "$(stamp "$folder" "$1")" ] && return
    echo "Installing $1 into $folder"
    rm -rf "$folder"
    if ! "python${name%%-*}" -m venv "$folder" || ! "$folder/bin/pip" install -q --disable-pip-version-check -r "$1"; then
        rm -rf "$folder"
        fail "The stack $1 could not be installed."
    fi
    touch "$(stamp "$folder" "$1")"
}

stamp() { echo "$1/installed-$(cksum <"$2" | tr -d ' ')"; } # folder, file: there when it is installed
