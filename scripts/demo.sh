#!/bin/sh
# A training step's backward on one case: make the case, run it, compare the result with the definition.
set -eu
cd "$(dirname "$0")/.."
mkdir -p build/demo
step() {
  echo "\$ $*"
  "$@"
}
step build/bin/normrope make-case flux-ln -o build/demo/flux-ln.safetensors
step build/bin/normrope backward build/demo/flux-ln.safetensors -o build/demo/flux-ln.result.safetensors
step build/bin/normrope check build/demo/flux-ln.safetensors build/demo/flux-ln.result.safetensors
