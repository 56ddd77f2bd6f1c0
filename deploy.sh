#!/usr/bin/env bash
# Makes a web action of each of MODELS' images, and checks that it answers.
set -euo pipefail
folder=$(dirname "$(readlink -f "$0")") delete=0 failed=0

usage() {
    cat <<'END'
Usage: MODELS="max-ocr max-object-detector" USERNAME=me ./deploy.sh
       MODELS="max-ocr" ./deploy.sh --delete

Makes a web action MODEL of the image USERNAME/MODEL, for each of MODELS, and prints how to call it; or removes it.

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
  RESULT_LIMIT       the platform's limit of a result in bytes (default: the image's)
  RESULTS            1 for an action MODEL-results too, which keeps answers that took over a minute (default: 0)
  RESULTS_INSECURE   1 if OpenWhisk's API has a certificate that nobody vouches for (default: 0)
  CHECK              the GET that has to be answered with 200, or nothing (default: /model/metadata)
  WSK                the command line (default: wsk; for example "wsk -i")
END
}
fail() { echo "deploy.sh: $*" >&2 && exit 1; }
word() { # variable, pattern, example
    [[ ${!1} =~ ^($2)$ ]] || fail "$1 '${!1}' is not valid: it should be like $3."
}
case ${1:-} in
    -h | --help) usage && exit ;;
    --delete) delete=1 && shift ;;
    -*) fail "there is no option $1; --help lists the variables." ;;
esac
read -r -d '' -a models <<<"${*:-${MODELS:-}}" || true
USERNAME=${USERNAME:-} VERSION=${VERSION:-} PACKAGE=${PACKAGE:-} MEMORY=${MEMORY:-512} TIMEOUT=${TIMEOUT:-300000}
CONCURRENCY=${CONCURRENCY:-} CHECK=${CHECK-/model/metadata} RESULTS=${RESULTS:-0} RESULTS_INSECURE=${RESULTS_INSECURE:-}
PREDICT_PATH=${PREDICT_PATH:-} BASE_PATH=${BASE_PATH:-} RESULT_LIMIT=${RESULT_LIMIT:-} WSK=${WSK:-wsk}
export SECRET=${SECRET:-} # for Python; in a command line anybody could read it
part='[a-z0-9]+([._-]+[a-z0-9]+)*'
[ ${#models[@]} -gt 0 ] || fail 'which models? MODELS="max-ocr" USERNAME=me ./deploy.sh (--help says more).'
for MODEL in "${models[@]}"; do word MODEL "$part" max-ocr; done
[ $delete = 1 ] || word USERNAME "([A-Za-z0-9.-]+(:[0-9]+)?/)?$part(/$part)*" "me or registry.example.com/me"
for name in CHECK PREDICT_PATH BASE_PATH; do word $name '(/[!-~]*)?' /model/metadata; done
word RESULTS '[01]' "0 or 1"
read -r -a wsk <<<"$WSK" # of several words, like "wsk -i"
for command in "${wsk[0]}" curl python3; do command -v "$command" >/dev/null || fail "$command is not installed."; done
work=$(mktemp -d) # readable for nobody else
trap 'rm -r "$work"' EXIT
read -r -d '' example <<'END' || true
import json, os, shlex, sys
url, predict = sys.argv[1], sys.argv[2] or "/model/predict"
try:
    paths = json.load(sys.stdin)["paths"]
    path = predict if predict in paths else next(path for path in paths if "post" in paths[path])
    method = "post" if "post" in paths[path] else "get"
    parameters = paths[path].get("parameters", []) + paths[path][method].get("parameters", [])
except (KeyError, StopIteration, TypeError, ValueError):
    sys.exit(print("    " + url, "stands for", sys.argv[2] or "what the image has as its PREDICT_PATH"))
wanted = [one for one in parameters if one.get("required")] or parameters[:1]
command = ["curl"] + ["-H", "X-Require-Whisk-Auth: $SECRET"] * bool(os.environ["SECRET"])
for one in wanted:
    if one.get("in") == "formData":
        command += ["-F", one["name"] + ("=@FILE" if one.get("type") == "file" else "=VALUE")]
    elif one.get("in") == "body":
        command += ["-H", "Content-Type: application/json", "-d", "JSON"]
command += ["-X", "POST"] * (method == "post" and not {"-F", "-d"} & set(command))
query = "&".join(one["name"] + "=VALUE" for one in wanted if one.get("in") == "query")
command.append(url + (path if path != predict else "") + ("?" + query if query else ""))
print("    " + " ".join('"%s"' % word if "$SECRET" in word else shlex.quote(word) for word in command))
END

python3 - "$work" <<'END' # all annotations each time, as an update keeps what it does not name
import json, os, sys
secret, work = os.environ["SECRET"], sys.argv[1]
open(work + "/header", "w").write("X-Require-Whisk-Auth: %s\n" % secret if secret else "")
for action in "model", "results":
    annotations = {"require-whisk-auth": secret or False, "provide-api-key": action == "results"}
    annotations.update({"web-export": True, "raw-http": True, "final": True, "web-custom-options": False})
    json.dump(annotations, open(work + "/" + action, "w"))
END

remove() { # action, if there is one
    error=$("${wsk[@]}" action delete "$1" 2>&1) || [[ $error == *"does not exist"* ]]
}
undeploy() { remove "$action-results" && remove "$action" && echo "$action: gone"; }

update() { # action, file of annotations, options of wsk...
    error="wsk could not make $1, or tell its URL"
    "${wsk[@]}" action update "$1" --annotation-file "$work/$2" "${@:3}" || return
    url=$("${wsk[@]}" action get "$1" --url | tail -n 1)
}

update_results() {
    update "$action-results" results "$folder/results.py" --kind python:default \
        --param MODEL "$MODEL" --param INSECURE "${RESULTS_INSECURE/0/}"
}

get() { # path: again while OpenWhisk says 202 to a cold start; results.py's 202 has a header
    for _ in 1 2 3 4 5; do
        status=$(curl -sS --compressed -H "@$work/header" -D "$work/headers" -o "$work/answer" -w '%{http_code}' \
            "$url$1")
        if [ "$status" != 202 ] || grep -qi '^retry-after:' "$work/headers"; then break; fi
    done
}

expect() { # status, path
    get "$2"
    [ "$status" != "$1" ] || return 0
    id=$(tr -d '\r' <"$work/headers" | sed -n 's/^x-openwhisk-activation-id: *//Ip')
    error="GET $url$2 is answered with $status, not $1${id:+, see $WSK activation get $id}: $(cat "$work/answer")"
    return 1
}

deploy() { # never leaves open results beside a model with a secret, wherever it fails
    local image=$USERNAME/$MODEL${VERSION:+:$VERSION} url status id
    if [ "$RESULTS" = 1 ] && [ -n "$SECRET" ]; then update_results; else remove "$action-results"; fi || return
    update "$action" model --docker "$image" --memory "$MEMORY" --timeout "$TIMEOUT" \
        ${CONCURRENCY:+--concurrency "$CONCURRENCY"} --param OPENWHISK_PREDICT_PATH "$PREDICT_PATH" \
        --param OPENWHISK_BASE_PATH "$BASE_PATH" --param OPENWHISK_RESULT_LIMIT "$RESULT_LIMIT" || return
    [ -z "$CHECK" ] || expect 200 "$CHECK" || return
    echo "$action: $url"
    get /swagger.json && python3 -c "$example" "$url" "$PREDICT_PATH" <"$work/answer" || return
    [ "$RESULTS" = 1 ] || return 0
    update_results && expect 202 /00000000000000000000000000000000 || return # an id that no activation has
    echo "    curl ${SECRET:+-H \"X-Require-Whisk-Auth: \$SECRET\" }$url/ID"
}

[ -z "$PACKAGE" ] || [ $delete = 1 ] || "${wsk[@]}" package update "$PACKAGE" || fail "wsk could not make the package."
for MODEL in "${models[@]}"; do
    action=${PACKAGE:+$PACKAGE/}$MODEL error=
    if [ $delete = 1 ]; then undeploy; else deploy; fi && continue
    echo "$action: FAILED: $error" >&2 && failed=1
done
exit $failed
