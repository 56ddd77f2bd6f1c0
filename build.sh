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
  -r, --registry R   REGISTRY=R        where the models come from (default: docker.io/codait)
  -t, --tag T        TAG=T             the tag of the models (default: latest)
  -j, --jobs N       JOBS=N            how many models at once (default: 1)
  -d, --docker D     DOCKER=D          the engine's command, like podman (default: docker)
      --no-push      PUSH=0            build and check only
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
        -u | --username | -r | --registry | -t | --tag | -j | --jobs | -d | --docker)
            [ $# -gt 1 ] || fail "$1 needs a value; --help lists all options."
            case $1 in
                -u | --username) USERNAME=$2 ;;
                -r | --registry) REGISTRY=$2 ;;
                -t | --tag) TAG=$2 ;;
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
USERNAME=${USERNAME:-} REGISTRY=${REGISTRY:-docker.io/codait} TAG=${TAG:-latest}
JOBS=${JOBS:-1} DOCKER=${DOCKER:-docker} PUSH=${PUSH:-1}

[ "${REGISTRY#docker.io/}:$TAG" != "${USERNAME#docker.io/}:latest" ] ||
    fail "the images would replace the models' own, as REGISTRY and USERNAME are the same: choose another USERNAME."
part='[a-z0-9]+([._-]+[a-z0-9]+)*'
path="([A-Za-z0-9.-]+(:[0-9]+)?/)?$part(/$part)*"
[ ${#models[@]} -gt 0 ] || fail "which models? Name them: MODELS=\"max-ocr\" USERNAME=me ./build.sh (--help says more)."
[ -n "$USERNAME" ] || fail "USERNAME is missing: where shall the images go? USERNAME=me ./build.sh (--help says more)."
word USERNAME "$USERNAME" "$path" "me or registry.example.com/me"
word REGISTRY "$REGISTRY" "$path" docker.io/codait
word TAG "$TAG" '[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}' latest
word JOBS "$JOBS" '[1-9][0-9]?' 4
word PUSH "$PUSH" '[01]' "0 or 1"
for model in "${models[@]}"; do word "the model" "$model" "$part" max-ocr; done
# shellcheck disable=SC2086  # of several words, like "sudo docker"
docker() { command $DOCKER "$@"; }
command -v "${DOCKER%% *}" >/dev/null || fail "${DOCKER%% *} is not installed; DOCKER names another engine, like podman."
docker info >/dev/null 2>&1 || fail "the engine does not answer: is it started, and may you use it? Try '$DOCKER info'."

work=$(mktemp -d "${TMPDIR:-/tmp}/build.XXXXXX")
set -m # each model's job is a process group, which can be ended with all that it has started
cleanup() {
    local job container
    trap '' INT TERM
    for job in $(jobs -p); do kill -- "-$job" 2>/dev/null || true; done
    wait
    for container in $(docker ps -aq --filter "label=build=$work"); do docker rm -f "$container" >/dev/null; done
    rm -rf "$work/context" "$work/slots" "$work"/*.row
    rmdir "$work" 2>/dev/null || true # logs of failures stay
}
trap cleanup EXIT
trap 'rm -f "$work"/*.log; exit 130' INT
trap 'rm -f "$work"/*.log; exit 143' TERM
mkdir "$work/context"
cp "$folder/Dockerfile" "$folder/openwhisk.py" "$work/context"
chmod -R a+rX "$work/context" # the model's user has to read it, whatever the umask
revision=$(git -C "$folder" rev-parse HEAD 2>/dev/null || echo unknown)

# Runs in the new container, with its Python: the platform's first two requests.
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
result = post("/run", {"value": {"__ow_method": "get", "__ow_path": "/model/metadata", "__ow_query": ""}})
print(result)
if "error" in result:
    sys.exit("GET /model/metadata is answered with an error: " + json.dumps(result["error"]))
END

step() { # error, command...
    error=$1
    shift
    "$@" </dev/null
}

build() { # model -> the rest of its row; its output goes to the log
    local image=$USERNAME/$1 base=$REGISTRY/$1:$TAG container
    step "there is no base image $base" pull_unless_there "$base" || return
    step "the build failed" docker build -t "$image" --build-arg "REGISTRY=$REGISTRY" --build-arg "MODEL=$1" \
        --build-arg "TAG=$TAG" --build-arg "REVISION=$revision" "$work/context" || return
    error="the image does not start"
    container=$(docker run -d --label "build=$work" "$image") || return
    step "the model does not answer" docker exec "$container" python -c "$ask"
    local answered=$?
    docker logs "$container" 2>&1
    docker rm -f "$container"
    [ $answered = 0 ] || return
    [ "$PUSH" = 1 ] || return 0
    step "the registry refused it (try '$DOCKER login')" docker push "$image"
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
