#!/usr/bin/env bash
# Makes a web action of each of MODELS' images, and checks that it answers.
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)

usage() {
    cat <<'END'
Usage: MODELS="max-ocr max-object-detector" USERNAME=me ./deploy.sh
       MODELS="max-ocr" ./deploy.sh --delete

Makes a web action MODEL of the image USERNAME/MODEL that build.sh pushed, for each of MODELS; prints its URL and how to
call it. With --delete, removes the actions. With --manifest, prints them as a manifest.yaml for wskdeploy instead.

  variable           meaning
  MODELS             the models; they can be arguments, too
  USERNAME           where build.sh pushed them
  VERSION            of the images, as for build.sh (default: the latest)
  PACKAGE            of the actions (default: none)
  MEMORY             megabytes for each container (default: 512)
  TIMEOUT            time limit of an activation in milliseconds, the model's loading included (default: 300000)
  CONCURRENCY        activations at once in a container (default: as it was, at first the platform's)
  SECRET             callers must send it in the header X-Require-Whisk-Auth (default: anyone may call)
  PREDICT_PATH       what the bare URL stands for (default: the image's)
  BASE_PATH          the path at which callers see the model, if a proxy gives it an address of its own
  CORS               the origins of pages that may call, * for any, app if the model answers that itself
  RESULTS            1 for an action MODEL-results too, which keeps answers that took over a minute (default: 0)
  RESULTS_INSECURE   1 if OpenWhisk's API has a certificate that nobody vouches for (default: 0)
  CHECK              the GET that has to be answered with 200, or nothing (default: /model/metadata)
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

models=() what=deploy
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage && exit ;;
        --delete | --manifest) what=${1#--} ;;
        -*) fail "there is no option $1; --help lists all." ;;
        *) models+=("$1") ;;
    esac
    shift
done
[ ${#models[@]} -gt 0 ] || read -r -d '' -a models <<<"${MODELS:-}" || true
USERNAME=${USERNAME:-} VERSION=${VERSION:-} PACKAGE=${PACKAGE:-} MEMORY=${MEMORY:-512} TIMEOUT=${TIMEOUT:-300000}
CONCURRENCY=${CONCURRENCY:-} SECRET=${SECRET:-} CHECK=${CHECK-/model/metadata} WSK=${WSK:-wsk}
PREDICT_PATH=${PREDICT_PATH:-} CORS=${CORS:-} RESULTS=${RESULTS:-0} RESULTS_INSECURE=${RESULTS_INSECURE:-0}

part='[a-z0-9]+([._-]+[a-z0-9]+)*'
[ ${#models[@]} -gt 0 ] || fail "which models? Name them: MODELS=\"max-ocr\" USERNAME=me ./deploy.sh (--help says more)."
for model in "${models[@]}"; do word "the model" "$model" "$part" max-ocr; done
if [ "$what" != delete ]; then
    [ -n "$USERNAME" ] || fail "USERNAME is missing: whose images? USERNAME=me ./deploy.sh (--help says more)."
    word USERNAME "$USERNAME" "([A-Za-z0-9.-]+(:[0-9]+)?/)?$part(/$part)*" "me or registry.example.com/me"
fi
[ -z "$PACKAGE" ] || word PACKAGE "$PACKAGE" '[A-Za-z0-9_][A-Za-z0-9_@.-]*' models
word VERSION "$VERSION" '([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?' 1.2.0
word MEMORY "$MEMORY" '[1-9][0-9]*' 512
word TIMEOUT "$TIMEOUT" '[1-9][0-9]*' 300000
word CONCURRENCY "$CONCURRENCY" '([1-9][0-9]*)?' 10
word CHECK "$CHECK" '(/[!-~]*)?' /model/metadata
word PREDICT_PATH "$PREDICT_PATH" '(/[!-~]*)?' /predict
word BASE_PATH "${BASE_PATH:-}" '(/[!-~]*)?' /models/ocr
word CORS "$CORS" '(app|[*]|https?://[^ ,/]+( https?://[^ ,/]+)*)?' https://www.example.com
[[ ! $SECRET =~ ^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee])$ ]] || fail "SECRET '$SECRET' is not valid: wsk does not take that for a text."
word RESULTS "$RESULTS" '[01]' "0 or 1"
word RESULTS_INSECURE "$RESULTS_INSECURE" '[01]' "0 or 1"
for command in "${WSK%% *}" curl python3; do
    [ "$what" = manifest ] || command -v "$command" >/dev/null || fail "$command is not installed."
done
# shellcheck disable=SC2086  # of several words, like "wsk -i"
wsk() { command $WSK "$@"; }

# How to call the model, from its swagger.json on standard input: a file, JSON, or a query.
read -r -d '' example <<'END' || true
import json, shlex, sys
url, secret, predict = sys.argv[1], sys.argv[2], sys.argv[3] or "/model/predict"
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

# What an activation's record, on standard input behind a line of wsk's, says of a failure.
read -r -d '' reason <<'END' || true
import json, sys
record = json.loads(sys.stdin.read().partition("\n")[2])
error = record["response"].get("result", {}).get("error", "")
if isinstance(error, dict):
    error = error.get("body", error)
lines = record.get("logs") or []
print("\n".join(([str(error)] if error else []) + ["    " + line for line in lines[-10:]]))
END

remove() { # action
    error="wsk could not delete it"
    wsk action delete "$1" || return
    echo "$1: deleted"
    remove_results "$1"
}

remove_results() { # action; an old one would keep an old secret
    error="wsk could not delete its results"
    ! wsk action get "$1-results" >/dev/null 2>&1 || wsk action delete "$1-results" >/dev/null
}

get() { # path, curl's options... -> the status of what the web action answers; again while OpenWhisk says 202 to a cold start
    local path=$1
    shift
    [ -z "$SECRET" ] || set -- -H "X-Require-Whisk-Auth: $SECRET" "$@"
    for _ in 1 2 3 4 5; do
        status=$(curl -sS -o "$answer" -D "$headers" -w '%{http_code}' --max-time 120 "$@" "$url$path") || return
        if [ "$status" != 202 ] || grep -qi '^retry-after:' "$headers"; then break; fi # that is results.py's own 202
    done
}

explain() { # path -> what was answered, and what the activation's record says
    local id record
    echo "GET $url$1: $status $(head -c 300 "$answer")"
    id=$(tr -d '\r' <"$headers" | sed -n 's/^x-openwhisk-activation-id: *//Ip')
    [ -n "$id" ] || return 0 # OpenWhisk's own answer
    for _ in 1 2 3 4 5; do # records come late
        record=$(wsk activation get "$id" 2>/dev/null) && python3 -c "$reason" <<<"$record" && break
        sleep 1
    done
}

options() { # -> the words for wsk that an action and its results have in common
    words=(--web-secure false) # which takes away the one that it had
    [ -z "$SECRET" ] || words=(--web-secure "$SECRET")
}

deploy() { # model, action, image
    local action=$2 url status words never=00000000000000000000000000000000 # an id that no activation has
    options
    words+=(--web raw --memory "$MEMORY" --timeout "$TIMEOUT")
    [ -z "$CONCURRENCY" ] || words+=(--concurrency "$CONCURRENCY")
    [ -z "$PREDICT_PATH" ] || words+=(--param PREDICT_PATH "$PREDICT_PATH")
    [ -z "${BASE_PATH+set}" ] || words+=(--param BASE_PATH "$BASE_PATH")
    words+=(--param CORS "$CORS" -a web-custom-options "$([ -z "$CORS" ] && echo false || echo true)")
    error="wsk could not make the action"
    wsk action update "$action" --docker "$3" "${words[@]}" || return
    error="wsk does not tell its URL"
    url=$(wsk action get "$action" --url | tail -n 1) || return
    [[ $url =~ ^https?:// ]] || return
    error="its URL $url does not answer"
    if [ -n "$CHECK" ]; then
        get "$CHECK" || return
        error="GET $url$CHECK is not answered with 200; another path: CHECK=/path"
        [ "$status" = 200 ] || { explain "$CHECK" >&2 && return 1; }
    fi
    get /swagger.json --compressed && [ "$status" = 200 ] || echo '{}' >"$answer"
    echo "$action: $url"
    echo "    $(python3 -c "$example" "$url" "$SECRET" "$PREDICT_PATH" <"$answer")"
    if [ "$RESULTS" = 0 ]; then
        remove_results "$action"
        return
    fi
    error="wsk could not make the action of its results"
    options
    words+=(--kind python:default --web raw -a provide-api-key true --param MODEL "$1")
    [ "$RESULTS_INSECURE" = 0 ] || words+=(--param INSECURE 1)
    wsk action update "$action-results" "$folder/results.py" "${words[@]}" || return
    url+=-results
    error="the action of its results does not reach OpenWhisk's API; if its certificate is self-signed: RESULTS_INSECURE=1"
    get "/$never" || return
    [ "$status" = 202 ] || { explain "/$never" >&2 && return 1; }
    echo "    curl ${SECRET:+-H $(printf %q "X-Require-Whisk-Auth: $SECRET") }$url/ID"
}

manifest() { # -> YAML, in which each value is JSON
    local model secret=false
    quote() { python3 -c 'import json, sys; print(json.dumps(sys.argv[1]))' "$1"; }
    local package=default
    [ -z "$PACKAGE" ] || package=$PACKAGE
    [ -z "$SECRET" ] || secret=$(quote "$SECRET")
    printf 'packages:\n  %s:\n    actions:\n' "$package"
    for model in "${models[@]}"; do
        printf '      %s:\n        docker: %s\n        web: raw\n' "$model" "$(quote "$USERNAME/$model${VERSION:+:$VERSION}")"
        [ -z "$CONCURRENCY" ] || echo "        # wskdeploy has no word for it: wsk action update ${PACKAGE:+$PACKAGE/}$model --concurrency $CONCURRENCY"
        printf '        limits: {memorySize: %s, timeout: %s}\n' "$MEMORY" "$TIMEOUT"
        # All of them each time: wskdeploy keeps what an earlier manifest named and this one does not.
        printf '        annotations: {require-whisk-auth: %s, web-custom-options: %s}\n' "$secret" "$([ -z "$CORS" ] && echo false || echo true)"
        printf '        inputs: {%s%sCORS: %s}\n' "${PREDICT_PATH:+PREDICT_PATH: $(quote "$PREDICT_PATH"), }" \
            "${BASE_PATH+BASE_PATH: $(quote "$BASE_PATH"), }" "$(quote "$CORS")"
        [ "$RESULTS" = 1 ] || continue
        printf '      %s-results:\n        function: results.py\n        runtime: python:default\n        web: raw\n' "$model"
        printf '        annotations: {require-whisk-auth: %s, provide-api-key: true}\n' "$secret"
        printf '        inputs: {MODEL: %s%s}\n' "$(quote "$model")" "$([ "$RESULTS_INSECURE" = 0 ] || echo ', INSECURE: "1"')"
    done
}

[ "$what" != manifest ] || { manifest && exit; }
answer=$(mktemp) headers=$(mktemp)
trap 'rm -f "$answer" "$headers"' EXIT
[ -z "$PACKAGE" ] || [ "$what" = delete ] || wsk package update "$PACKAGE" >/dev/null || fail "wsk could not make the package $PACKAGE."
failed=0
for model in "${models[@]}"; do
    action=${PACKAGE:+$PACKAGE/}$model error=
    if [ "$what" = delete ]; then remove "$action"; else deploy "$model" "$action" "$USERNAME/$model${VERSION:+:$VERSION}"; fi || {
        echo "$action: FAILED: $error" >&2
        failed=1
    }
done
exit $failed
