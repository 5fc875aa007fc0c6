#!/bin/sh
# scripts/gpu_check.py where no device is to be seen: it says so, does nothing and fails.
set -eu

status=0
text=$(CUDA_VISIBLE_DEVICES='' python3 "$SOURCE/scripts/gpu_check.py" 2>&1) || status=$?
echo "$text"
[ $status = 2 ] || { echo "ended with $status, expected 2"; exit 1; }
case $text in
"gpu-check: nothing was checked: "*) ;;
*) exit 1 ;;
esac
