#!/usr/bin/env bash
# Adds openwhisk.py to models' images, checks that they answer, and pushes them.
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)

usage() {
    cat <<'END'
Usage: MODELS="max-ocr max-object-detector" USERNAME=me ./build.sh
       ./build.sh [OPTION]... [MODEL]...

Builds USERNAME/MODEL from REGISTRY/MODEL:TAG for each of MODELS, checks that it answers, and pushes it.

  option             variable          meaning
  -u, --username U   USERNAME=U        where to push: a Docker Hub user, or registry.example.com/path
  -r, --registry R   REGISTRY=R        where the models come from (default: quay.io/codait)
  -t, --tag T        TAG=T             the tag of the models (default: latest)
  -v, --version V    VERSION=V         push as USERNAME/MODEL:V, too
  -c, --check PATH   CHECK=PATH        the GET that an image has to answer with 200, or nothing (default: /model/metadata)
  -f, --forward      FORWARD=1         of images with a server of their own, as FastAPI's, MLflow's: adds forward.py
  -j, --jobs N       JOBS=N            how many models at once (default: 1)
  -d, --docker D     DOCKER=D          the engine's command, like podman (default: docker)
      --no-push      PUSH=0            build and check only
                     WSGI_APP=M:A      where the app is, if not in an app.py that runs it: module:attribute, module:factory()
                     PREDICT_PATH=P    what the bare URL stands for, if not /model/predict
                     RESULT_LIMIT=N    the platform's limit of a result in bytes, if not 1048576
                     UPSTREAM_PORT=N   with --forward, where the image's server listens, if not at its EXPOSE
  -h, --help                           this text
END
}

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

# Words only: nothing that comes from outside is ever evaluated.
word() { # name, value, pattern, example
    [[ $2 =~ ^$3$ ]] || fail "$1 '$2' is not valid: it should be like $4."
}

models=() named=0
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage && exit ;;
        --no-push) PUSH=0 ;;
        -f | --forward) FORWARD=1 ;;
        -u | --username | -r | --registry | -t | --tag | -v | --version | -c | --check | -j | --jobs | -d | --docker)
            [ $# -gt 1 ] || fail "$1 needs a value; --help lists all options."
            case $1 in
                -u | --username) USERNAME=$2 ;;
                -r | --registry) REGISTRY=$2 ;;
                -t | --tag) TAG=$2 ;;
                -v | --version) VERSION=$2 ;;
                -c | --check) CHECK=$2 ;;
                -j | --jobs) JOBS=$2 ;;
                -d | --docker) DOCKER=$2 ;;
            esac
            shift
            ;;
        -*) fail "there is no option $1; --help lists all." ;;
        *) models+=("$1") named=1 ;;
    esac
    shift
done
[ $named = 1 ] || read -r -d '' -a models <<<"${MODELS:-}" || true
USERNAME=${USERNAME:-} REGISTRY=${REGISTRY:-quay.io/codait} TAG=${TAG:-latest} VERSION=${VERSION:-}
CHECK=${CHECK-/model/metadata} FORWARD=${FORWARD:-0} JOBS=${JOBS:-1} DOCKER=${DOCKER:-docker} PUSH=${PUSH:-1}
WSGI_APP=${WSGI_APP:-} PREDICT_PATH=${PREDICT_PATH:-} RESULT_LIMIT=${RESULT_LIMIT:-} UPSTREAM_PORT=${UPSTREAM_PORT:-}

[ "${REGISTRY#docker.io/}:$TAG" != "${USERNAME#docker.io/}:latest" ] ||
    fail "the images would replace the models' own, as REGISTRY and USERNAME are the same: choose another USERNAME."
part='[a-z0-9]+([._-]+[a-z0-9]+)*' tag='[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}'
path="([A-Za-z0-9.-]+(:[0-9]+)?/)?$part(/$part)*"
[ ${#models[@]} -gt 0 ] || fail "which models? Name them: MODELS=\"max-ocr\" USERNAME=me ./build.sh (--help says more)."
[ -n "$USERNAME" ] || fail "USERNAME is missing: where shall the images go? USERNAME=me ./build.sh (--help says more)."
word USERNAME "$USERNAME" "$path" "me or registry.example.com/me"
word REGISTRY "$REGISTRY" "$path" quay.io/codait
word TAG "$TAG" "$tag" latest
word VERSION "$VERSION" "($tag)?" 1.2.0
word CHECK "$CHECK" '(/[!-~]*)?' /model/metadata
word FORWARD "$FORWARD" '[01]' "0 or 1"
word WSGI_APP "$WSGI_APP" '([A-Za-z0-9_.]+:[[:print:]]+)?' "app:app or 'app:create_app()'"
word PREDICT_PATH "$PREDICT_PATH" '(/[!-~]*)?' /predict
word RESULT_LIMIT "$RESULT_LIMIT" '[0-9]*' 1048576
word UPSTREAM_PORT "$UPSTREAM_PORT" '[0-9]{0,5}' 8000
word JOBS "$JOBS" '[1-9][0-9]?' 4
word PUSH "$PUSH" '[01]' "0 or 1"
for model in "${models[@]}"; do word "the model" "$model" "$part" max-ocr; done
# shellcheck disable=SC2086  # of several words, like "sudo docker"
docker() { command $DOCKER "$@"; }
command -v "${DOCKER%% *}" >/dev/null || fail "${DOCKER%% *} is not installed; DOCKER names another engine, like podman."
docker info >/dev/null 2>&1 || fail "the engine does not answer: is it started, and may you use it? Try '$DOCKER info'."

work=$(mktemp -d "${TMPDIR:-/tmp}/build.XXXXXX")
mkfifo "$work/lock"
exec 4<>"$work/lock"
echo >&4
uncut() { # command...: by no signal, as the engine may go on with a container whose client is gone
    local status
    read -r -u 4
    "$@"
    status=$?
    echo >&4
    return $status
}
set -m # each model's job is a process group, which can be ended with all that it has started
cleanup() {
    local job container
    trap '' INT TERM
    read -r -t 30 -u 4 || true
    for job in $(jobs -p); do kill -- "-$job" 2>/dev/null || true; done
    wait
    for container in $(docker ps -aq --filter "label=build=$work"); do docker rm -f "$container" >/dev/null 2>&1 || true; done
    rm -rf "$work/context" "$work/lock" "$work/slots" "$work"/*.row "$work"/*.Dockerfile
    rmdir "$work" 2>/dev/null || true # logs of failures stay
}
trap cleanup EXIT
trap 'rm -f "$work"/*.log; exit 130' INT
trap 'rm -f "$work"/*.log; exit 143' TERM
mkdir "$work/context"
cp "$folder/Dockerfile" "$folder/openwhisk.py" "$folder/forward.py" "$work/context"
chmod -R a+rX "$work/context" # the model's user has to read it, whatever the umask
revision=$(git -C "$folder" rev-parse HEAD 2>/dev/null || echo unknown)

# Runs in the new container, with its Python: the platform's first request, and the one that CHECK names.
read -r -d '' ask <<'END' || true
import json, sys, time, urllib.error, urllib.request

def post(path, message):
    request = urllib.request.Request("http://127.0.0.1:8080" + path, json.dumps(message).encode())
    try:
        return json.loads(urllib.request.urlopen(request, timeout=300).read().decode())
    except urllib.error.HTTPError as error:
        sys.exit(json.loads(error.read().decode())["error"])

for attempt in range(600):
    try:
        post("/init", {"value": {}})
        break
    except urllib.error.URLError as error:
        time.sleep(0.1)
else:
    sys.exit("it does not listen on port 8080")
path, _, query = sys.argv[1].partition("?")
if path:
    result = post("/run", {"value": {"__ow_method": "get", "__ow_path": path, "__ow_query": query}})
    print(result)
    answer = result.get("error", result)
    if answer.get("statusCode") != 200:
        sys.exit("GET %s is answered with %s; another path: CHECK=/path" % (sys.argv[1], json.dumps(answer)))
END

step() { # error, command...
    error=$1
    shift
    "$@" </dev/null
}

build() { # model -> the rest of its row; its output goes to the log
    local image=$USERNAME/$1 base=$REGISTRY/$1:$TAG file=$work/$1.Dockerfile python container tags argument
    step "there is no base image $base" pull_unless_there "$base" || return
    error="$base has no Python, which openwhisk.py needs"
    python=$(python_of "$base") || return
    {
        cat "$work/context/Dockerfile"
        if [ "$FORWARD" = 1 ]; then
            forward_to "$base" "$python" || return
        else
            echo "CMD [\"$python\", \"openwhisk.py\"$(script_of "$base")]"
        fi
    } >"$file"
    tags=(-t "$image")
    [ -z "$VERSION" ] || tags+=(-t "$image:$VERSION" --build-arg "VERSION=$VERSION")
    for argument in WSGI_APP PREDICT_PATH RESULT_LIMIT; do
        [ -z "${!argument}" ] || tags+=(--build-arg "$argument=${!argument}")
    done
    step "the build failed" docker build -f "$file" "${tags[@]}" --build-arg "REGISTRY=$REGISTRY" --build-arg "MODEL=$1" \
        --build-arg "TAG=$TAG" --build-arg "REVISION=$revision" "$work/context" || return
    error="the image does not start"
    container=$(uncut docker run -d --label "build=$work" "$image") || return
    step "the model does not answer" docker exec "$container" "$python" -c "$ask" "$CHECK"
    local answered=$?
    docker logs "$container" 2>&1
    uncut docker rm -f "$container"
    [ $answered = 0 ] || return
    [ "$PUSH" = 1 ] || return 0
    for tag in ${VERSION:+"$VERSION"} latest; do
        step "the registry refused it (try '$DOCKER login')" docker push "$image:$tag" || return
    done
}

python_of() { # image -> what its Python is called; python may be a 2.7
    local name recent="import sys; sys.exit(sys.version_info < (3, 6))"
    for name in python python3; do
        uncut docker run --rm --label "build=$work" --entrypoint "$name" "$1" -c "$recent" >/dev/null 2>&1 && echo "$name" && return
    done
    return 1
}

config() { # image, template
    docker image inspect --format "$2" "$1"
}

command_of() { # image -> its command's words as JSON, with a comma before each
    config "$1" '{{range .Config.Entrypoint}}, {{json .}}{{end}}{{range .Config.Cmd}}, {{json .}}{{end}}'
}

script_of() { # image -> the script that its Python runs, with its arguments, as `command_of`; or nothing
    local command words
    local shell='"-c", "(exec )?([A-Za-z0-9 ,._/=:@%+-]+)"$' # without quotes, variables or a second command
    local init='(, "[^"]*(tini|dumb-init)"(, "-[^"]*")*)?'
    local python="^$init"', "([^"]*/)?python[0-9.]*"(, "-[A-Zabd-ln-z]+")*(, "[^"-][^"]*\.py".*)$' # neither -c nor -m
    [ -z "$WSGI_APP" ] || return 0
    command=$(command_of "$1")
    if [[ $command =~ $shell ]]; then
        read -r -a words <<<"${BASH_REMATCH[2]}"
        printf -v command ', "%s"' "${words[@]}"
    fi
    if [[ $command =~ $python ]]; then echo "${BASH_REMATCH[6]}"; fi
}

forward_to() { # image, python -> the rest of a Dockerfile, in which forward.py starts the image's own server
    local command port=$UPSTREAM_PORT user
    command=$(command_of "$1")
    # shellcheck disable=SC2016  # they are the template's
    [ -n "$port" ] || port=$(config "$1" '{{range $port, $_ := .Config.ExposedPorts}}{{$port}} {{end}}')
    port=${port%/tcp } user=$(config "$1" '{{.Config.User}}')
    error="$base has neither CMD nor ENTRYPOINT"
    [ -n "$command" ] || return
    error="$base exposes ${port:-no port}: name its server's, UPSTREAM_PORT=8000"
    [[ $port =~ ^[0-9]+$ ]] || return
    if [ "$port" = 8080 ]; then # which is OpenWhisk's
        port=8081 command=$(sed -E ':a; s/(^|[^0-9])8080($|[^0-9])/\18081\2/; ta' <<<"$command")
    fi
    cat <<END
USER root
RUN ["$2", "-c", "import importlib.util, os, subprocess, sys; importlib.util.find_spec('werkzeug') or sys.exit(subprocess.call([sys.executable, '-m', 'pip', 'install', '--no-cache-dir', 'werkzeug'], env={**os.environ, 'PIP_BREAK_SYSTEM_PACKAGES': '1'}))"]
USER ${user:-root}
COPY forward.py ./
ENV WSGI_APP=forward:app UPSTREAM_PORT=$port
CMD ["$2", "openwhisk.py"$command]
END
}

pull_unless_there() {
    docker image inspect "$1" >/dev/null 2>&1 || docker pull "$1"
}

row() { # model
    local started=$SECONDS image=$USERNAME/$1 size=- result error='' log=$work/$1.log
    if set +e && build "$1" >"$log" 2>&1; then
        size=$(docker image inspect --format '{{.Size}}' "$image" | awk '{printf "%.0f MB", $1 / 1e6}')
        result="not pushed"
        [ "$PUSH" = 0 ] || result=$(docker image inspect --format '{{join .RepoDigests "\n"}}' "$image" | sed -n "s|^.*$image@||p" | tail -n 1)
        rm "$log"
    else
        result="FAILED: $error"
        { echo "$1: $error. The end of $log:"; tail -n 5 "$log" | sed 's/^/    /'; } >&2
    fi
    printf '%s\t%s\t%s\t%s\t%s\n' "$1" "$image" "$size" "$((SECONDS - started))" "$result" >"$work/$1.row"
}

mkfifo "$work/slots"
exec 3<>"$work/slots"
for ((slot = 0; slot < JOBS; slot++)); do echo >&3; done
for model in "${models[@]}"; do
    read -r -u 3
    echo "$model: building"
    { row "$model"; echo >&3; } &
done
wait

echo
{
    printf 'model\timage\tsize\tseconds\tdigest\n'
    for model in "${models[@]}"; do cat "$work/$model.row"; done
} | awk -F '\t' '{printf "%-24s %-40s %8s %8s  %s\n", $1, $2, $3, $4, $5}'
! grep -q "FAILED" "$work"/*.row
