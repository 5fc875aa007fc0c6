#!/usr/bin/env bash
# The command as its users meet it: every preset (small) through make-case, backward, forward and check; exit codes;
# JSON; results that were tampered with; files that must not appear. NORMROPE_CLI is the command.
. "$(dirname "$0")/support/command.sh"

is_json() {
  "${PYTHON:-python3}" -c 'import json,sys; json.load(open(sys.argv[1]))' "$1" 2>/dev/null || fail "no JSON: $(head -c 200 "$1")"
}

# flip FILE OFFSET_FROM_END: turns the highest bit of a byte.
flip() {
  local size byte
  size=$(stat -c %s "$1")
  byte=$(od -An -tu1 -j $((size - $2)) -N1 "$1" | tr -d ' ')
  printf "$(printf '\\x%02x' $((byte ^ 128)))" | dd of="$1" bs=1 seek=$((size - $2)) conv=notrunc status=none
}

# A CUDA device, if there is one (or what stands for it).
cuda=$("$cli" info --json | "${PYTHON:-python3}" -c \
  'import json,sys; print(*(d for d in json.load(sys.stdin)["runtime_devices"] if d != "CPU"))')

# Presets, at sizes that keep their character.
presets="reference flux flux-ln hunyuan-video sd3.5 auraflow hunyuan-dit cosmos cogvideox wan wide"
for preset in $presets; do
  text=(--text 5)
  case $preset in hunyuan-dit | cosmos | wan) text=() ;; esac
  expect 0 make-case "$preset" --image 19 "${text[@]}" -o case.st
  expect 0 backward case.st -o grad.st
  expect 0 forward case.st -o out.st
  expect 0 check case.st
  expect 0 check case.st grad.st
  expect 0 check case.st out.st
  expect 0 check case.st --device reference
  case $preset in reference | flux-ln | cosmos | wan) on=$cuda ;; *) on= ;; esac
  if [ -n "$on" ]; then
    expect 0 backward case.st -o grad.st --device cuda
    expect 0 check case.st grad.st
    expect 0 check case.st --device cuda
  fi
done
[ -n "$cuda" ] || {
  expect 4 backward case.st -o grad.st --device cuda
  says '--device cuda: not here: [a-z]'
}
expect 0 info
grep -q "^devices:  *cpu  reference  cuda$([ -n "$cuda" ] || echo ' (not here: [a-z].*)')$" out || fail "devices: $(cat out)"
NORMROPE_DEVICES=cpu "$cli" info >out
[ -z "$cuda" ] || grep -q 'cuda (not here: NORMROPE_DEVICES leaves none)$' out || fail "no device is left: $(cat out)"
[ "$("$cli" info --json | grep -c '"note"')" = "$(wc -w <<<"$presets")" ] || fail "info lists other presets than tested"

# Options, one at a time and together.
while read -r options; do
  # shellcheck disable=SC2086
  expect 0 make-case $options -o case.st
  expect 0 check case.st
done <<'END'
--batch 2 --norm 1 --norm-added 3 --rope half --order 1 --tables random
--image-key 7 --text-key 2 --rope-length 4 --eps 0.5 --dtype float16
--dtype bfloat16 --table-dtype float32 --weight-dtype float32 --norm 4
--heads 6 --kv-heads 2 --dim 16 --rope 4 --rope-dim 12 --table-gradients --tables random
--norm 4 --norm-added 4 --shared --scope all-heads --rope-start 2 --rope-length 3 --batch 2
--norm 2 --scope all-heads --table-gradients --dim 30 --rope half --seed 7
--norm 0 --norm-added 0 --rope none
--norm 0 --norm-added 1 --text 0
END

# An option alone: the text's norm stays, and tables of the image's rows move with them, which the operator cannot say.
expect 0 make-case --norm 4 -o case.st
grep -aq '"normType":"4","normAddedType":"2"' case.st || fail "--norm alone: $(head -c 300 case.st)"
expect 0 make-case --order 1 -o case.st
grep -aq '"segments":.*ropePosition' case.st || fail "--order alone: $(head -c 300 case.st)"
expect 0 make-case --order 1 --rope none -o case.st
grep -aq '"concatOrder":"1"' case.st || fail "--order without tables: $(head -c 300 case.st)"

# Results do not depend on threads or instruction set, and a case not on when it was made.
expect 0 make-case flux --image 300 --text 20 -o case.st
expect 0 make-case flux --image 300 --text 20 -o same.st
cmp -s case.st same.st || fail "the same options made another case"
expect 0 make-case flux --image 300 --text 20 --seed 1 -o same.st
cmp -s case.st same.st && fail "another seed made the same case"
expect 0 backward case.st -o one.st --threads 1
expect 0 backward case.st -o two.st --threads 5
cmp -s one.st two.st || fail "results depend on the threads"
for isa in $("$cli" info | sed -n 's/^instruction sets://p' | sed 's/[a-z0-9]* (not on this machine)//g'); do
  expect 0 backward case.st -o two.st --isa "$isa"
  cmp -s one.st two.st || fail "results depend on the instruction set: $isa"
done

# Some outputs only; results that are not what they should be.
expect 0 make-case --batch 2 -o case.st
expect 0 backward case.st -o some.st --only gradKey,gradNormQueryBias
expect 0 check case.st some.st
[ "$(grep -c ok out)" = 2 ] || fail "--only: $(cat out)"
expect 2 backward case.st -o some.st --only gradKey,gradKye
expect 0 backward case.st -o grad.st
for offset in 1 99 1501; do
  cp grad.st bad.st
  flip bad.st $offset
  expect 1 check case.st bad.st
  grep -q FAIL out || fail "no FAIL in the table"
done
expect 1 check case.st bad.st --json
is_json out
expect 0 check case.st --json
is_json out
expect 0 info --json
is_json out
expect 0 gradcheck --json
is_json out
expect 0 gradcheck
expect 1 gradcheck --tolerance 1e-18
expect 0 make-case --dim 8 -o other.st
expect 3 check other.st grad.st
says 'gradQuery: float32 \[2,5,10,6\], expected float32 \[1,5,10,8\]'
expect 0 check case.st case.st # which has statistics
[ "$(grep -c ok out)" = 8 ] || fail "statistics: $(cat out)"
expect 0 make-case --norm 0 --norm-added 0 -o other.st
expect 3 check case.st other.st
says 'none of the case'

# A NaN with a sign in the last query row, which passes the tables' one row unrotated, in a piece of the check with only
# such rows: the outputs hold the quiet NaN.
expect 0 make-case --dtype bfloat16 --heads 24 --kv-heads 1 --dim 128 --image 400 --text 0 --norm 0 --norm-added 0 \
  --rope-length 1 -o nan.st
printf '\xc0\xff' | dd of=nan.st bs=1 seek=$(($(stat -c %s nan.st) - 2867714)) conv=notrunc status=none
expect 0 forward nan.st -o out.st
expect 0 check nan.st out.st

# Usage.
expect 2
expect 2 frobnicate
expect 2 backward
expect 2 backward case.st
expect 2 backward case.st case.st -o x.st
expect 2 backward --frob case.st -o x.st
says '\-\-frob'
grep -q "normrope backward --help" err || fail "no hint"
expect 2 backward case.st -o
expect 2 backward case.st -o x.st --device tpu
expect 2 backward case.st -o x.st --threads 0
expect 2 backward case.st -o x.st --isa sse
expect 2 make-case nothing -o x.st
expect 2 make-case flux
expect 2 make-case --dim 7 -o x.st
expect 2 make-case --rope 5 -o x.st
while IFS='|' read -r options text; do
  # shellcheck disable=SC2086
  expect 2 $options
  says "$text"
done <<'END'
make-case --norm rms -o x.st|--norm rms, expected 0 none, 1 LayerNorm, 2 affine LayerNorm, 3 RMSNorm, 4 affine RMSNorm
make-case --norm-added 5 -o x.st|--norm-added 5, expected 0 none, 1 LayerNorm
make-case --order text -o x.st|--order text, expected 0 image first, 1 text first
make-case --heads 0 -o x.st|--heads 0, expected a number from 1 to 65536
make-case --image 3x -o x.st|--image 3x, expected a number from 1 to 1073741824
make-case --dim 2000 -o x.st|--dim 2000, expected an even number from 2 to 1024
make-case --seed -1 -o x.st|--seed -1, expected a number from 0 to 9223372036854775807
make-case --eps tiny -o x.st|--eps tiny, expected a number of at least 0
make-case --rope full -o x.st|--rope full, expected none, interleave, half, or the width
make-case --dtype foo -o x.st|--dtype foo, expected float32, float16 or bfloat16
make-case --table-dtype float64 -o x.st|--table-dtype float64, expected float32, float16 or bfloat16
make-case --weight-dtype float -o x.st|--weight-dtype float, expected float32, float16 or bfloat16
make-case --scope heads -o x.st|--scope heads, expected head or all-heads
make-case --tables round -o x.st|--tables round, expected angles or random
check case.st --direction up|--direction up, expected forward or backward
check case.st --device tpu|--device tpu, expected cpu, cuda or reference
check case.st --threads 0|--threads 0, expected a number from 1 to 1024
check case.st --isa sse|--isa sse, expected one that 'normrope info' lists
gradcheck --tolerance -1|--tolerance -1, expected a number of at least 0
gradcheck --seed x|--seed x, expected a number from 0 to 9223372036854775807
END
[ -e x.st ] && fail "a refused command left a file"
expect 2 info there
expect 0 --help
expect 0 --version
grep -qx 'normrope [0-9]*\.[0-9]*\.[0-9]*' out || fail "--version: $(cat out)"
for command in info make-case forward backward check gradcheck; do
  expect 0 $command --help
  grep -q "^Usage: normrope $command" out || fail "$command --help"
done
if [ -w /dev/full ]; then
  "$cli" info >/dev/full 2>err && fail "a full disk went unnoticed"
fi

# Files: nothing is written over the input, nothing half is left, links and odd files are seen through.
expect 2 backward case.st -o case.st
says 'is the input'
ln -s case.st link.st
expect 2 backward case.st -o link.st
expect 2 backward case.st -o /dev/null
expect 3 backward nowhere.st -o x.st
says 'nowhere.st: No such file'
expect 3 backward . -o x.st
expect 4 backward case.st -o nowhere/x.st
head -c 5000 case.st >cut.st
expect 3 backward cut.st -o x.st
says 'cut.st: .*data'
head -c 7 case.st >cut.st
expect 3 check cut.st
: >empty.st
expect 3 forward empty.st -o x.st
[ -e x.st ] && fail "a failed run left a file"
mkdir full
cp case.st full/
expect 0 backward full/case.st -o full/out.st
[ "$(ls full)" = "$(printf 'case.st\nout.st')" ] || fail "left behind: $(ls full)"

# A run that is stopped, or has no room, leaves nothing behind either.
(ulimit -f 4; "$cli" make-case flux --image 64 --text 0 -o full/large.st 2>err)
[ $? = 4 ] || fail "no room: $(cat err)"
says 'cannot write'
"$cli" make-case flux -o full/large.st 2>err &
for _ in $(seq 200); do
  ls full/large.st.* >/dev/null 2>&1 && break
  sleep 0.02
done
kill -TERM $!
wait $! && fail "a stopped run succeeded"
[ "$(ls full)" = "$(printf 'case.st\nout.st')" ] || fail "left behind: $(ls full)"

# edit FROM TO (of one length) in the case's header.
edit() {
  LC_ALL=C sed "s/$1/$2/" case.st >edited.st
  cmp -s case.st edited.st && fail "nothing to edit: $1"
}
edit '"normType":"2"' '"normType":"9"'
expect 3 backward edited.st -o x.st
says "edited.st: attribute normType: '9', expected an integer from 0 to 4"
edit '"eps":"1e-06"' '"eps":"-1e06"'
expect 3 forward edited.st -o x.st
edit '"gradKeyOutput"' '"gradKeyOutpux"'
expect 3 backward edited.st -o x.st
says 'gradKeyOutput is missing'
expect 0 forward edited.st -o x.st
edit '"normAddedKeyRstd"' '"normAddedKeyRstx"'
expect 3 backward edited.st -o x.st
says 'normAddedKeyRstd is missing, which the backward of norm type 2 requires'
edit '"shape":\[2,10,8,6\]' '"shape":[2,8,10,6]'
expect 3 backward edited.st -o x.st
says 'shape \[2,8,10,6\], expected \[2,10,8,6\] = \[batch, headNum'
edit '"ropeCos"' '"ropeCox"'
expect 3 backward edited.st -o x.st
says 'ropeCos is missing, which ropeType 1 requires'
edit '"query":' '"\\u001bry":'
expect 3 backward edited.st -o x.st
LC_ALL=C grep -q "$(printf '\033')" err && fail "a control character reached the terminal"

[ "$failures" = 0 ] && echo "all good"
exit $((failures > 0))
