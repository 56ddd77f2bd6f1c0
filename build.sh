#!/usr/bin/env bash
# Adds openwhisk.py to models' images, checks that they answer, and pushes them.
# shellcheck disable=SC2016,SC2317  # the $ of templates; what trap calls
set -euo pipefail
folder=$(dirname "$(readlink -f "$0")")

usage() {
    cat <<'END'
Usage: MODELS="max-ocr max-object-detector" USERNAME=me ./build.sh

Builds USERNAME/MODEL from REGISTRY/MODEL:TAG for each of MODELS, checks that it answers, and pushes it.

  variable        meaning
  MODELS          the models; they can be arguments, too
  USERNAME        where to push: a Docker Hub user, or registry.example.com/path
  REGISTRY        where the models come from (default: quay.io/codait)
  TAG             of the models (default: latest)
  VERSION         push as USERNAME/MODEL:VERSION, too (default: the latest only)
  CHECK           the GET that has to be answered with 200, or nothing (default: /model/metadata; with FORWARD nothing)
  TIMEOUT         for the model's loading in milliseconds, as of the action (default: 300000)
  PUSH            0 to build and check only (default: 1)
  DOCKER          the engine's command, like podman (default: docker)
  WSGI_APP        the app, if no script runs it: module:attribute or module:factory()
  FORWARD         1 for images with a server of their own, as FastAPI's or Ollama's (default: 0)
  UPSTREAM_PORT   where that server listens (default: the image's EXPOSE); if it is set, FORWARD is 1
  PREDICT_PATH    what the bare URL stands for (default: /model/predict)
  RESULT_LIMIT    the platform's limit of a result in bytes (default: 1048576)
END
}
fail() { echo "build.sh: $*" >&2 && exit 1; }
word() { # variable, pattern, example
    [[ ${!1} =~ ^($2)$ ]] || fail "$1 '${!1}' is not valid: it should be like $3."
}
case ${1:-} in
    -h | --help) usage && exit ;;
    -*) fail "there is no option $1; --help lists the variables." ;;
esac
read -r -d '' -a models <<<"${*:-${MODELS:-}}" || true
USERNAME=${USERNAME:-} REGISTRY=${REGISTRY:-quay.io/codait} TAG=${TAG:-latest} VERSION=${VERSION:-} PUSH=${PUSH:-1}
TIMEOUT=${TIMEOUT:-300000} WSGI_APP=${WSGI_APP:-} PREDICT_PATH=${PREDICT_PATH:-} RESULT_LIMIT=${RESULT_LIMIT:-}
FORWARD=${FORWARD:-${UPSTREAM_PORT:+1}} FORWARD=${FORWARD:-0} DOCKER=${DOCKER:-docker}
CHECK=${CHECK-$([ "$FORWARD" = 1 ] || echo /model/metadata)}
part='[a-z0-9]+([._-]+[a-z0-9]+)*' tag='[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}'
place="([A-Za-z0-9.-]+(:[0-9]+)?/)?$part(/$part)*"
[ ${#models[@]} -gt 0 ] || fail 'which models? Name them: MODELS="max-ocr" USERNAME=me ./build.sh (--help says more).'
for MODEL in "${models[@]}"; do word MODEL "$part" max-ocr; done
word USERNAME "$place" "me or registry.example.com/me"
word REGISTRY "$place" quay.io/codait
word TAG "$tag" latest
word VERSION "($tag)?" 1.2.0
word CHECK '(/[A-Za-z0-9._~/%+:@,;-]*)?' /model/metadata
word TIMEOUT '[1-9][0-9]*' 300000
for name in PUSH FORWARD; do word $name '[01]' "0 or 1"; done
[ "${REGISTRY#docker.io/}:$TAG" != "${USERNAME#docker.io/}:latest" ] ||
    fail "REGISTRY and USERNAME are the same, so the images would replace the models' own: choose another USERNAME."
read -r -a docker <<<"$DOCKER" # of several words, like "sudo docker"
"${docker[@]}" info >/dev/null 2>&1 || fail "the engine does not answer: is it started? Try '$DOCKER info'."

work=$(mktemp -d) container=
remove() { [ -z "$container" ] || { "${docker[@]}" rm -f "$container" >/dev/null 2>&1 || true; } && container=; }
cleanup() {
    [ -z "$(jobs -p)" ] || kill "$(jobs -p)" || true # the step that a signal has interrupted
    remove
    rm -r "$work/context"
    rmdir "$work" 2>/dev/null || true # the logs of failures stay
}
trap cleanup EXIT
trap 'exit 130' INT && trap 'exit 143' TERM
revision=$(git -C "$folder" rev-parse HEAD 2>/dev/null || echo unknown)
mkdir "$work/context" && cp "$folder"/{openwhisk,forward}.py "$work/context"
chmod -R a+rX "$work/context" # the model's user has to read it, whatever the umask

step() { # error, command...: a signal ends it at once
    error=$1
    "${@:2}" </dev/null &
    wait $!
}
script() { # a command's words in JSON... -> the same with openwhisk.py; fails unless they start a script of Python
    local word='[A-Za-z0-9,._/=:@%+-]+'
    if [[ $* =~ 'sh" "-c" "'(exec )?($word( $word)*)'"'$ ]]; then # of a shell
        mapfile -t < <(tr ' ' '\n' <<<"${BASH_REMATCH[2]}" | sed 's/.*/"&"/')
        set -- "${MAPFILE[@]}"
    fi
    while [[ ${1:-} =~ ^'"'([^ ]*/)?(tini|dumb-init|-[a-z]*|--)'"'$ ]]; do shift; done
    [[ ${1:-} =~ ^'"'([^ ]*/)?python[0-9.]*'"'$ ]] || return
    printf %s "$1, \"/openwhisk/openwhisk.py\""
    while [[ ${2:-} =~ ^'"'-[A-Zbdqsuv]+'"'$ ]]; do shift; done
    [[ ${2:-} =~ '.py"'$ ]] && printf ', %s' "${@:2}"
}

inspect() { "${docker[@]}" image inspect --format "$2" "$1"; } # image, template
ask() { # path, value, pattern of a good answer
    until step "the model does not answer as it should; another path to GET: CHECK=/path" curl -sS \
        -m $((TIMEOUT / 1000 + 5)) -o "$work/context/said" -d "{\"value\": $2}" "$address$1"; do
        [ $? != 28 ] && [ "$("${docker[@]}" inspect --format '{{.State.Running}}' "$container")" = true ] || return
        sleep 0.2 # until it listens
    done
    grep -q "$3" "$work/context/said"
}
build() { # sets error, for a failure, and result
    local base=$REGISTRY/$MODEL:$TAG image=$USERNAME/$MODEL file=Dockerfile port=${UPSTREAM_PORT:-} options=()
    local words command name address value each='{{println (json .)}}{{end}}'
    inspect "$base" . >/dev/null 2>&1 || step "there is no base image $base" "${docker[@]}" pull "$base" || return
    mapfile -t words < <(inspect "$base" "{{range .Config.Entrypoint}}$each{{range .Config.Cmd}}$each" | grep .)
    if [ "$FORWARD" = 1 ]; then
        file=Dockerfile.forward
        command='"/openwhisk/python", "/openwhisk/openwhisk.py"'$(printf %s "${words[@]/#/, }")
        [ -n "$port" ] || port=$(inspect "$base" '{{range $port, $_ := .Config.ExposedPorts}}{{$port}}{{end}}')
        port=${port%/tcp}
        error="$base exposes ${port:-no port}: name its server's, UPSTREAM_PORT=8000"
        [[ $port =~ ^[0-9]+$ ]] || return
        error="8080 is OpenWhisk's port: give the server another, UPSTREAM_PORT=8081 and its own setting for that"
        [ "$port" != 8080 ] || return
    elif [ -n "$WSGI_APP" ]; then
        command='"python3", "/openwhisk/openwhisk.py"'
    else
        error="the command of $base does not start a script: ${words[*]}. Name the app, WSGI_APP=module:attribute, \
let the server run, FORWARD=1, or make an image whose command is CMD [\"python\", \"x.py\"]"
        command=$(script "${words[@]}") || return
    fi
    for name in "REGISTRY=$REGISTRY" "MODEL=$MODEL" "TAG=$TAG" "RUN_AS=$(inspect "$base" '{{or .Config.User 0}}')" \
        "OPENWHISK_APP=$WSGI_APP" "OPENWHISK_PREDICT_PATH=$PREDICT_PATH" "OPENWHISK_RESULT_LIMIT=$RESULT_LIMIT" \
        "OPENWHISK_UPSTREAM_PORT=$port" "OPENWHISK_READY_PATH=$CHECK"; do options+=(--build-arg "$name"); done
    for name in "title=$MODEL" "base.name=$base" "version=${VERSION:-latest}" "revision=$revision"; do
        options+=(--label "org.opencontainers.image.$name"); done
    { cat "$folder/$file" && echo "CMD [$command]"; } >"$work/context/Dockerfile"
    step "it can't be built or started" "${docker[@]}" build -t "$image" "${options[@]}" "$work/context" || return
    container=build-$$ # which a signal may find half made
    "${docker[@]}" run -d --name "$container" -p 127.0.0.1::8080 "$image" || return
    address=$("${docker[@]}" port "$container" 8080)
    ask /init '{"env": {"__OW_DEADLINE": "'$(($(date +%s000) + TIMEOUT))'"}}' '"ok"' || return
    value='"__ow_method": "get", "__ow_query": "", "__ow_headers": {}, "__ow_body": "", "__ow_path": "'$CHECK\"
    [ -z "$CHECK" ] || ask /run "{$value}" '^{"statusCode": 200' || return
    remove
    [ "$PUSH" = 1 ] || { result="not pushed" && return; }
    for name in "$image" ${VERSION:+"$image:$VERSION"}; do
        "${docker[@]}" tag "$image" "$name"
        step "the registry refused it (try 'docker login')" "${docker[@]}" push "$name" || { result='' && return 1; }
    done
    result=$(inspect "$image" '{{join .RepoDigests "\n"}}' | sed -n "s|^.*$image@||p" | tail -n 1)
}
row() { printf '%-20s %-36s %8s %8s  %s\n' "$@"; }
failed=0 table=$(row model image size seconds digest)
for MODEL in "${models[@]}"; do
    echo "$MODEL: building"
    started=$SECONDS size=- result='' log=$work/$MODEL.log && : >"$work/context/said"
    if build >"$log" 2>&1; then
        rm "$log" && size=$(inspect "$USERNAME/$MODEL" '{{.Size}}' | awk '{printf "%.0f MB", $1 / 1e6}')
    else
        failed=1 lacks='(^| )FAILED: neither|exec: "/bin/sh"|unable to find user'
        ! grep -qE "$lacks" "$log" || error="$MODEL has neither Python nor a package manager"
        [ -z "$container" ] || "${docker[@]}" logs "$container" >>"$log" 2>&1
        cat "$work/context/said" >>"$log"
        { echo "$MODEL: $error. The end of $log:" && tail -n 5 "$log" | sed 's/^/    /'; } >&2
        remove
    fi
    table+=$'\n'$(row "$MODEL" "$USERNAME/$MODEL" "$size" $((SECONDS - started)) "${result:-FAILED: $error}")
done
printf '\n%s\n' "$table"
exit $failed
