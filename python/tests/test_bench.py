"""The benchmark at tiny sizes: that everything agrees with PyTorch, what the JSON has, exit codes. Never how long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from normrope.bench import presets

# One thread: on a busy machine two wait for each other, and nothing here is about time.
SMALL = ["--image", "12", "--text", "5", "--heads", "2", "--threads", "1"]


def run(*arguments: str, module: str = "normrope.bench") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL)


def command(*arguments: str) -> Any:
    """What the command `normrope` answers."""
    path = os.environ.get("NORMROPE_CLI")
    if not path:
        pytest.skip("NORMROPE_CLI does not say where the command is")
    return json.loads(subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout)


@pytest.fixture(scope="module")
def all_presets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("bench") / "a.json"
    options = ["--preset", "all", "--dtype", "bfloat16", "--variant", "operator,normrope,eager", "--no-memory"]
    done = run(*options, *SMALL, "--repeat", "3", "--json", str(path))
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


def test_presets_are_those_of_the_command() -> None:
    theirs = {p["name"]: p for p in command("info", "--json")["presets"]}
    assert list(theirs) == list(presets.PRESETS)
    norms = ("none", "layer", "layer_affine", "rms", "rms_affine")
    for name, p in presets.PRESETS.items():
        expected = theirs[name]
        assert (p.heads, p.dim, p.image, p.text) == tuple(expected[k] for k in ("heads", "dim", "image", "text"))
        assert p.norm == norms[expected["norm"]]
        assert p.norm_added == norms[expected["norm_added"]] or not p.text
        assert p.rope == {"interleave": "interleaved"}.get(expected["rope"], expected["rope"])
        assert p.order == ("image_first", "text_first")[expected["order"]]
        assert p.scope == {"all-heads": "all_heads"}.get(expected["scope"], expected["scope"])
        assert p.dtype == expected["dtype"]


def test_every_preset_agrees(all_presets: dict[str, Any]) -> None:
    found = all_presets["results"]
    directions = ("forward", "backward", "both")
    assert [(r["preset"], r["direction"]) for r in found] == [(p, d) for p in presets.PRESETS for d in directions]
    for r in found:
        assert {"operator", "normrope", "eager", r["copy"]} <= r["seconds"].keys()
        for s in r["seconds"].values():
            assert len(s["samples"]) == 3
            assert sorted(s["samples"])[1] == s["median"] > 0
            assert s["least"] <= s["lower_quartile"] <= s["median"] <= s["upper_quartile"] <= s["most"]
        assert r["ratios_to_base"]["normrope"] == 1


def test_bytes_and_shapes_are_those_of_the_command(all_presets: dict[str, Any]) -> None:
    options = ["--preset", "all", "--dtype", "bfloat16", "--repeat", "1", *SMALL[:6], "--json"]
    theirs = {(r["preset"], r["direction"]): r for r in command("bench", *options)["results"]}
    for r in all_presets["results"]:
        if r["direction"] != "both":
            expected = theirs[r["preset"], r["direction"]]
            assert (r["bytes"], r["shape"]) == (expected["bytes"], expected["shape"]), r["preset"]


def test_memory_and_picture(tmp_path: Path) -> None:
    numbers, picture = tmp_path / "b.json", tmp_path / "b.svg"
    sizes = ["--preset", "flux", "--dtype", "float32", "--heads", "2", "--repeat", "1", "--threads", "1"]
    options = [*sizes, "--variant", "normrope,eager,onednn", "--allocator", "kept"]
    done = run(*options, "--json", str(numbers), "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    for r in json.loads(numbers.read_text())["results"]:
        memory, outputs = r["memory"], r["output_bytes"]
        assert outputs == 3 * 4608 * 2 * 128 * 4 * (2 if r["direction"] == "both" else 1)
        assert ("onednn" in r["seconds"]) != ("onednn" in r["not_taken"])
        assert {"normrope", "eager"} <= memory.keys() <= r["seconds"].keys()
        assert memory["eager"]["peak_bytes"] > memory["normrope"]["peak_bytes"]
        assert 0.9 * outputs < memory["normrope"]["peak_bytes"] < 1.25 * outputs, "and little for small things"
    drawn = picture.read_text()
    assert all(f"<!-- {text}" in drawn for text in ("flux", "float32", "forward", "normrope in PyTorch"))
    again = tmp_path / "c.svg"
    assert run(str(numbers), "-o", str(again), module="normrope.bench.plot").returncode == 0
    assert again.read_bytes() == picture.read_bytes(), "the same numbers give the same bytes"
    png = tmp_path / "d.png"
    assert run(str(numbers), "-o", str(png), "--preset", "flux", module="normrope.bench.plot").returncode == 0
    assert png.read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("module", "arguments", "text"),
    [
        ("normrope.bench", ["--preset", "nothing"], "no such preset"),
        ("normrope.bench", ["--dtype", "float64"], "expected a list of float32"),
        ("normrope.bench", ["--repeat", "0"], "expected a whole number from 1 on"),
        ("normrope.bench", ["--dim", "7", "--no-memory"], "expected an even number"),
        ("normrope.bench.plot", ["/dev/null", "-o", "x.svg"], "plot: not the JSON of a benchmark"),
    ],
)
def test_refused(module: str, arguments: list[str], text: str) -> None:
    done = run(*arguments, module=module)
    assert done.returncode == 2
    assert text in done.stderr


def test_nothing_to_draw(tmp_path: Path) -> None:
    numbers = tmp_path / "a.json"
    numbers.write_text(json.dumps({"results": [], "machine": {}}))
    done = run(str(numbers), "-o", str(tmp_path / "a.svg"), module="normrope.bench.plot")
    assert done.returncode == 2
    assert "there is nothing to draw" in done.stderr
    assert not (tmp_path / "a.svg").exists()


def test_latency(tmp_path: Path) -> None:
    numbers = tmp_path / "latency.json"
    options = ["--calls", "3", "--repeat", "2", "--threads", "1", "--json", str(numbers)]
    done = run(*options, module="normrope.bench.latency")
    assert done.returncode == 0, done.stderr
    found = json.loads(numbers.read_text())["results"]
    assert set(found) == {"forward, no gradients wanted", "forward", "backward"}
    for timed in found.values():
        assert all(len(s["samples"]) == 2 and s["median"] > 0 for s in timed.values())
        assert timed["call"]["median"] > timed["bare"]["median"]
