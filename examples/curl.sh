#!/usr/bin/env bash
# The endpoint with nothing but curl: the model, a chat, and the same chat as a stream.
#
#   examples/curl.sh http://127.0.0.1:8000/v1 "$(hpcserve key --header)"
#
# The second argument is a file, since everybody on a login node can read command lines; leave it out where no key is needed.
set -euo pipefail
endpoint=${1:-http://127.0.0.1:8000/v1}
header=${2:-/dev/null}

ask() { curl --silent --show-error --fail-with-body --header @"$header" "$@"; }
first_model() { python3 -c 'import json, sys; print(json.load(sys.stdin)["data"][0]["id"])'; }

model=$(ask "$endpoint/models" | first_model)
echo "model: $model"

body='{"model": "'$model'", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, "temperature": 0'
ask "$endpoint/chat/completions" --header 'Content-Type: application/json' --data "$body}"
echo
ask "$endpoint/chat/completions" --header 'Content-Type: application/json' --no-buffer --data "$body, \"stream\": true}"
