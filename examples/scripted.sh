#!/usr/bin/env bash
# Brings a deployment up, uses it, and takes it down whatever happens. Its arguments go to `hpcserve up`:
#
#   examples/scripted.sh --engine mock --cluster local
#   examples/scripted.sh --nodes 2 --model /path/to/model --timeout 3600
set -euo pipefail
name=scripted-$$

deployment=$(hpcserve up --name "$name" --port 0 --detach --json "$@")  # if this fails, nothing is left behind
trap 'hpcserve down --name "$name"' EXIT

field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1" <<< "$deployment"; }

"$(dirname "$0")/curl.sh" "$(field endpoint)" "$(hpcserve key --name "$name" --header)"
