#!/usr/bin/env bash
# Makes a web action of each of MODELS' images, and checks that it answers.
set -euo pipefail

usage() {
    cat <<'END'
Usage: MODELS="max-ocr max-object-detector" USERNAME=me ./deploy.sh
       MODELS="max-ocr" ./deploy.sh --delete

Makes a web action MODEL of the image USERNAME/MODEL that build.sh pushed, for each of MODELS; prints its URL and how to
call it. With --delete, removes the actions.

  variable           meaning
  MODELS             the models; they can be arguments, too
  USERNAME           where build.sh pushed them
  PACKAGE            of the actions (default: none)
  MEMORY             megabytes for each container (default: 512)
  TIMEOUT            time limit of an activation in milliseconds, the model's loading included (default: 300000)
  CONCURRENCY        activations at once in a container (default: the platform's)
  SECRET             callers must send it in the header X-Require-Whisk-Auth (default: anyone may call)
  WSK                the command line (default: wsk; for example "wsk -i")
END
}

fail() {
    echo "deploy.sh: $*" >&2
    exit 1
}

word() { # name, value, pattern, example
    [[ $2 =~ ^$3$ ]] || fail "$1 '$2' is not valid: it should be like $4."
}

models=() delete=0
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage && exit ;;
        --delete) delete=1 ;;
        -*) fail "there is no option $1; --help lists all." ;;
        *) models+=("$1") ;;
    esac
    shift
done
[ ${#models[@]} -gt 0 ] || read -r -d '' -a models <<<"${MODELS:-}" || true
USERNAME=${USERNAME:-} PACKAGE=${PACKAGE:-} MEMORY=${MEMORY:-512} TIMEOUT=${TIMEOUT:-300000}
CONCURRENCY=${CONCURRENCY:-} SECRET=${SECRET:-} WSK=${WSK:-wsk}

part='[a-z0-9]+([._-]+[a-z0-9]+)*'
[ ${#models[@]} -gt 0 ] || fail "which models? Name them: MODELS=\"max-ocr\" USERNAME=me ./deploy.sh (--help says more)."
for model in "${models[@]}"; do word "the model" "$model" "$part" max-ocr; done
if [ $delete = 0 ]; then
    [ -n "$USERNAME" ] || fail "USERNAME is missing: whose images? USERNAME=me ./deploy.sh (--help says more)."
    word USERNAME "$USERNAME" "([A-Za-z0-9.-]+(:[0-9]+)?/)?$part(/$part)*" "me or registry.example.com/me"
fi
[ -z "$PACKAGE" ] || word PACKAGE "$PACKAGE" '[A-Za-z0-9_][A-Za-z0-9_@.-]*' models
word MEMORY "$MEMORY" '[1-9][0-9]*' 512
word TIMEOUT "$TIMEOUT" '[1-9][0-9]*' 300000
[ -z "$CONCURRENCY" ] || word CONCURRENCY "$CONCURRENCY" '[1-9][0-9]*' 10
for command in "${WSK%% *}" curl python3; do
    command -v "$command" >/dev/null || fail "$command is not installed."
done
# shellcheck disable=SC2086  # of several words, like "wsk -i"
wsk() { command $WSK "$@"; }

# How to call the model, from its swagger.json on standard input: a file, JSON, or a query.
read -r -d '' example <<'END' || true
import json, shlex, sys
url, secret, predict = sys.argv[1], sys.argv[2], "/model/predict"
try:
    paths = json.load(sys.stdin)["paths"]
    method = "post" if "post" in paths[predict] else "get"
    parameters = paths[predict].get("parameters", []) + paths[predict][method].get("parameters", [])
except (KeyError, TypeError, ValueError):
    method, parameters = "get", []
wanted = [one for one in parameters if one.get("required")] or parameters[:1]
command = ["curl"] + (["-H", "X-Require-Whisk-Auth: " + secret] if secret else [])
query = "&".join(one["name"] + "=VALUE" for one in wanted if one.get("in") == "query")
for one in wanted:
    if one.get("in") == "formData":
        command += ["-F", one["name"] + ("=@FILE" if one.get("type") == "file" else "=VALUE")]
    elif one.get("in") == "body":
        command += ["-H", "Content-Type: application/json", "-d", "JSON"]
if method == "post" and len(command) < 3 + 2 * bool(secret):
    command += ["-X", "POST"]
print(" ".join(map(shlex.quote, command + [url + ("?" + query if query else "")])))
END

remove() { # action
    error="wsk could not delete it"
    wsk action delete "$1" || return
    echo "$1: deleted"
}

get() { # path, curl's options... -> what the web action answers; again while the platform says 202 to a cold start
    local path=$1 status
    shift
    [ -z "$SECRET" ] || set -- -H "X-Require-Whisk-Auth: $SECRET" "$@"
    for _ in 1 2 3 4 5; do
        status=$(curl -sS -o "$answer" -w '%{http_code}' --max-time 120 "$@" "$url$path") || return
        [ "$status" = 202 ] || break
    done
    [ "$status" = 200 ] || { echo "GET $url$path: $status $(head -c 300 "$answer")" >&2 && return 1; }
}

deploy() { # action, image
    set -- "$@" --web raw --memory "$MEMORY" --timeout "$TIMEOUT"
    [ -z "$SECRET" ] || set -- "$@" --web-secure "$SECRET"
    [ -z "$CONCURRENCY" ] || set -- "$@" --concurrency "$CONCURRENCY"
    local action=$1 image=$2 url
    shift 2
    error="wsk could not make the action"
    wsk action update "$action" --docker "$image" "$@" || return
    error="wsk does not tell its URL"
    url=$(wsk action get "$action" --url | tail -n 1) || return
    [[ $url =~ ^https?:// ]] || return
    error="its URL $url does not answer"
    get /model/metadata || return
    error="its URL $url/swagger.json does not answer"
    get /swagger.json --compressed || echo '{}' >"$answer"
    echo "$action: $url"
    echo "    $(python3 -c "$example" "$url" "$SECRET" <"$answer")"
}

answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
[ -z "$PACKAGE" ] || [ $delete = 1 ] || wsk package update "$PACKAGE" >/dev/null || fail "wsk could not make the package $PACKAGE."
failed=0
for model in "${models[@]}"; do
    action=${PACKAGE:+$PACKAGE/}$model error=
    if [ $delete = 1 ]; then remove "$action"; else deploy "$action" "$USERNAME/$model"; fi || {
        echo "$action: FAILED: $error" >&2
        failed=1
    }
done
exit $failed
