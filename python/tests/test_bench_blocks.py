"""The benchmark of models' blocks at tiny sizes: agreement, what the JSON has, exit codes. Never how long."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import normrope.diffusers
from normrope.bench import blocks

SMALL = ["--heads", "1", "--image", "12", "--text", "5", "--threads", "1", "--repeat", "3"]


def test_blocks_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert blocks.main([*SMALL, "--no-memory", "--json", str(path)]) == 0
    results = json.loads(path.read_text())["results"]
    assert [(r["block"], r["dtype"]) for r in results] == [
        (b, d) for b in blocks.BLOCKS for d in ("float32", "bfloat16")
    ]
    for result in results:
        assert (result["heads"], result["image"], result["text"]) == (1, 12, 5)
        assert 0 < result["distance"] < (1e-4 if result["dtype"] == "float32" else 0.1)
        for direction in blocks.DIRECTIONS:
            assert result[direction]["ratios"]["diffusers"] == 1
            for seconds in result[direction]["seconds"].values():
                assert sorted(seconds["samples"])[1] == seconds["median"] > 0


def test_memory(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert blocks.main([*SMALL, "--block", "flux", "--dtype", "float32", "--image", "512", "--json", str(path)]) == 0
    (result,) = json.loads(path.read_text())["results"]
    kept = 4 * (512 + 5) * 128 * 4  # a block keeps far more for its backward than four tensors of its rows
    assert all(found["peak_bytes"] > kept for found in result["memory"].values())
    assert "peak MiB" in capfd.readouterr().out
    assert 0 < result["saved_bytes"]["patched"] < result["saved_bytes"]["diffusers"]


def test_a_wrong_block_is_not_timed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = normrope.diffusers.FAMILIES["FluxAttnProcessor"]
    monkeypatch.setitem(normrope.diffusers.FAMILIES, "FluxAttnProcessor", blocks.replace(wrong, order=0))
    assert blocks.main([*SMALL, "--block", "flux", "--dtype", "float32"]) == 1
    assert "flux float32: patched is off by" in capfd.readouterr().err
