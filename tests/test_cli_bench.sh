#!/usr/bin/env bash
# normrope bench at tiny sizes: that it runs, what its JSON has, exit codes. Never how long anything takes.
. "$(dirname "$0")/support/command.sh"

# Every preset, dtype, direction and instruction set, two numbers of threads.
expect 0 bench --preset all --dtype all --isa all --threads 1,3 --repeat 3 --image 11 --text 3 --json
[ -s err ] && fail "stderr: $(cat err)"
"$cli" info --json >info
"${PYTHON:-python3}" - <<'END' || fail "the JSON is not as it should be"
import json
out, info = json.load(open("out")), json.load(open("info"))
isas = [i["name"] for i in info["isas"] if i["usable"]]
assert out["version"] == info["version"] and out["repeat"] == 3 and out["warm_up"] == 2
assert out["machine"]["processors"] >= 1 and out["memory"] == {"alignment": 2 << 20, "huge_pages_advised": True}
expected = {(p["name"], dtype, direction, isa, threads) for p in info["presets"]
            for dtype in ("float32", "float16", "bfloat16") for direction in ("forward", "backward")
            for isa in isas for threads in (1, 3)}
keys = ("preset", "dtype", "direction", "isa", "threads")
found = [tuple(r[k] for k in keys) for r in out["results"]]
assert len(found) == len(expected) and set(found) == expected
for r in out["results"]:
    assert r["shape"]["image"] == 11 and r["bytes"] > 0 and r["huge_page_bytes"] >= 0
    assert {"memcpy", "loop", "operator"} <= set(r["seconds"]) and {r["copy"], r["loop"]} <= set(r["seconds"])
    for s in r["seconds"].values():
        assert len(s["samples"]) == 3 and sorted(s["samples"])[1] == s["median"]
        assert min(s["samples"]) == s["least"] <= s["lower_quartile"] <= s["median"] <= s["upper_quartile"] <= s["most"]
    median = {name: s["median"] for name, s in r["seconds"].items()}
    assert median[r["copy"]] == min(median[k] for k in median if k in ("memcpy", "copy_streamed"))
    assert median[r["loop"]] == min(median[k] for k in median if k in ("loop", "loop_streamed"))
    for name in ("copy", "loop"):
        assert abs(r["ratio_to_" + name] * median[r[name]] / median["operator"] - 1) < 1e-3
    assert abs(r["gigabytes_per_second"] * 1e9 * median["operator"] / r["bytes"] - 1) < 1e-3
assert [l["direction"] for l in out["latency"]] == ["forward", "backward"]
for l in out["latency"]:
    for step in ("plan_create", "plan_run", "two_phases_and_synchronize", "repeatable_launch",
                 "repeatable_launch_and_synchronize"):
        assert 0 < l[step]["least"] <= l[step]["median"] <= l[step]["most"]
END

# The table, and the options of make-case.
expect 0 bench --preset flux --dtype float16 --direction backward --image 9 --text 4 --batch 2 --kv-heads 2 --repeat 1
[ "$(grep -c '^flux ' out)" = 1 ] || fail "no row: $(cat out)"
grep -q 'repeatable_launch' out || fail "no latency: $(cat out)"
expect 0 bench --preset cosmos --image 9 --table-gradients --tables random --rope 8 --dim 32 --repeat 1 --threads 2
expect 0 bench --preset wan --image 9 --dim 10 --norm 1 --repeat 1 --isa scalar
expect 0 bench --help
grep -q -- '--preset LIST' out || fail "no help: $(cat out)"

expect 2 bench --preset nothing
says "--preset nothing, expected one that 'normrope info' lists"
expect 2 bench --preset flux,
says 'an item is empty'
expect 2 bench --dtype float64
says '--dtype float64, expected float32, float16, bfloat16 or all'
expect 2 bench --direction up
says '--direction up, expected forward or backward'
expect 2 bench --isa sse
expect 2 bench --threads 0
expect 2 bench --threads 1,x
expect 2 bench --repeat 0
says '--repeat 0, expected a number from 1 to'
expect 2 bench --heads 0
says '--heads 0, expected a number from 1 to 65536'
expect 2 bench --norm rms
says '--norm rms, expected 0 none, 1 LayerNorm'
expect 2 bench --preset flux --dim 7
says 'even number'
expect 2 bench flux
says 'no operand'
expect 2 bench --fast
expect 4 bench --preset flux --image 1073741824
says 'GB are needed'
expect 4 bench --preset flux --image 1073741824 --batch 1048576 --heads 65536
says 'more elements than any memory'
expect 4 bench --preset flux --image 1073741824 --json
[ -s out ] && fail "output of a failed run: $(head -c 100 out)"

[ "$failures" = 0 ] && echo "all good"
exit $((failures > 0))
