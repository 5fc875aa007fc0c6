#!/usr/bin/env bash
# bench/plot.py: that it draws what normrope bench and compare_torch.py measured. What it looks like is for eyes.
. "$(dirname "$0")/support/bench.sh"
. "$(dirname "$0")/support/command.sh"
find_python matplotlib

"$cli" bench --preset flux,wan --image 9 --text 4 --repeat 3 --isa all --json >ours.json || fail "normrope bench"
"$python" - <<'END' || fail "a file as compare_torch.py writes it"
import json
out = json.load(open("ours.json"))
out["results"] = [r for r in out["results"] if r["preset"] == "flux"]
for r in out["results"]:
    ours = r["seconds"]["operator"]
    for name, times in (("eager", 12.5), ("compile", 3.5)):
        r["seconds"][name] = {key: times * ours[key] for key in ("median", "lower_quartile", "upper_quartile")}
json.dump(out, open("theirs.json", "w"))
END

draw() {
  "$python" "$bench/plot.py" "$@" >out 2>err
}
draw ours.json theirs.json -o a.svg || fail "svg: $(cat err)"
draw ours.json theirs.json -o b.svg && cmp -s a.svg b.svg || fail "two pictures of the same numbers differ"
for text in wan flux 'torch.compile' float32 forward; do
  grep -q "<!-- .*$text" a.svg || fail "the picture does not say $text"
done
[ "$(wc -c <a.svg)" -lt 200000 ] || fail "the picture is too large for a page: $(wc -c <a.svg) bytes"
draw ours.json --preset wan -o c.svg && ! grep -q '<!-- flux' c.svg || fail "a preset that was not asked for"
draw ours.json -o a.png && [ "$(head -c 4 a.png | tail -c 3)" = PNG ] || fail "no PNG: $(cat err)"

draw ours.json --preset nothing -o d.svg && fail "a picture of nothing"
grep -q 'nothing to draw' err || fail "$(cat err)"
echo '{"results": [{}]}' >bad.json
draw bad.json -o d.svg && fail "a picture of no benchmark"
grep -q 'plot: not the JSON' err || fail "$(cat err)"
[ -e d.svg ] && fail "a picture after a failure"

[ "$failures" = 0 ] && echo "all good"
exit $((failures > 0))
