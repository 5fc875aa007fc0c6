#!/usr/bin/env bash
# bench/compare_torch.py at tiny sizes: that every preset agrees with PyTorch, what the JSON has, exit codes. Never how
# long anything takes. torch.compile is left out, which would take minutes.
. "$(dirname "$0")/support/bench.sh"
. "$(dirname "$0")/support/command.sh"
find_python torch,safetensors,rich

compare() {
  "$python" "$bench/compare_torch.py" --command "$cli" --library "$NORMROPE_LIBRARY" "$@" >out 2>err </dev/null
}
compare --preset all --dtype bfloat16 --variant eager --no-memory --repeat 3 --threads 2 --json a.json -- \
  --image 12 --text 5 --heads 2 || fail "exit $?: $(cat err)"
compare --preset flux --dtype float32 --variant eager,onednn --repeat 1 --allocator kept --json b.json -- --heads 2 ||
  fail "exit $?: $(cat err)"
"$cli" bench --preset all --dtype bfloat16 --repeat 1 --image 12 --text 5 --heads 2 --json >c.json ||
  fail "normrope bench"
"$python" - <<'END' || fail "the JSON is not as it should be"
import json
ours = {(r["preset"], r["dtype"], r["direction"]): r for r in json.load(open("c.json"))["results"]}
found = json.load(open("a.json"))
assert found["repeat"] == 3 and found["threads"] == 2 and found["torch"]
assert {(r["preset"], r["dtype"], r["direction"]) for r in found["results"]} == ours.keys()
for r in found["results"]:
    mine = ours[r["preset"], r["dtype"], r["direction"]]
    assert r["bytes"] == mine["bytes"] and r["shape"] == mine["shape"], r["preset"]
    assert {"operator", "eager", r["copy"]} <= r["seconds"].keys()
    for s in r["seconds"].values():
        assert len(s["samples"]) == 3 and sorted(s["samples"])[1] == s["median"] > 0
        assert s["least"] <= s["lower_quartile"] <= s["median"] <= s["upper_quartile"] <= s["most"]
    assert r["ratio_to_copy"] == r["ratios_to_copy"]["operator"] and r["ratios_to_operator"]["operator"] == 1
for r in json.load(open("b.json"))["results"]:
    assert {"operator", "eager"} <= r["memory"].keys() <= r["seconds"].keys()
    assert ("onednn" in r["seconds"]) != ("onednn" in r["not_taken"])
    assert r["direction"] == "forward" or r["not_taken"]["onednn"]
    outputs = 3 * 4608 * 2 * 128 * 4  # or gradients; PyTorch's backward also gives up what its forward kept
    for name, m in r["memory"].items():
        assert m["peak_bytes"] > 0.9 * outputs and m["kept_bytes"] <= m["peak_bytes"], (name, m)
        assert m["kept_bytes"] > 0.9 * outputs or r["direction"] == "backward", (name, m)
END

compare --preset nothing && fail "a preset that is not there"
grep -q 'no such preset' err || fail "$(cat err)"
compare --variant eager --no-memory -- --dim 7 && fail "a case that cannot be"
compare --variant eager --no-memory -- --image 8 --text 4 --rope-length 3
[ $? = 1 ] || fail "a rope over a part of a stream is not compared"
grep -q 'only a part of' err || fail "$(cat err)"
compare --dtype float64
[ $? = 2 ] || fail "a dtype that is not there"

[ "$failures" = 0 ] && echo "all good"
exit $((failures > 0))
