"""The operator on a CUDA device beside PyTorch: eager, torch.compile, and separate kernels where they are installed.

Everything is held against PyTorch in float32 before it is timed, by graph replay where a variant can be captured and by
events otherwise, over sets of tensors that exceed the second-level cache. To standard output a line of JSON about the
machine, then one for each preset, dtype and direction as soon as it is there; 1 if one of them failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch

from normrope.bench import measure, presets, separate, variants
from normrope.bench.presets import Case, Preset

CACHE_TIMES, LEAST_BYTES, MOST_SETS = 3, 1 << 28, 8


def sets(preset: Preset, device: str) -> list[Case]:
    """Cases of the preset, as many as do not fit into the device's cache together."""
    made = [presets.make(preset, device)]
    cache = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 0
    size = 2 * (made[0].output_bytes + sum([made[0].tensors[name].nbytes for name in made[0].streams]))
    count = min(MOST_SETS, max(LEAST_BYTES, CACHE_TIMES * cache) // size + 1)
    return made + [presets.make(preset, device, seed) for seed in range(1, count)]


def makers(case: Case) -> dict[str, Callable[[Case], variants.Variant]]:
    """What is compared, by name."""
    names = ("operator", "normrope", "eager", "compile")
    found: dict[str, Callable[[Case], variants.Variant]] = {
        name: partial(variants.make, name, keep_graph=True) for name in names
    }
    for name, step in separate.steps(case).items():
        found[name] = partial(variants.Recorded, name, call=step, keep_graph=True)
    return found


def microseconds(works: Sequence[Callable[[], Any]], repeat: int) -> tuple[dict[str, Any], bool]:
    """The time of one of them, run one after the other on the current stream; whether a graph replayed them."""

    def every() -> None:
        for work in works:
            work()

    stream = torch.cuda.current_stream()
    for _ in range(2):
        every()
    replay: Callable[[], object] = every
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            every()
        replay = graph.replay
    except RuntimeError:  # it cannot be captured
        torch.cuda.synchronize()
    samples = []
    for number in range(-measure.WARM_UP, repeat):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        replay()
        end.record()
        end.synchronize()
        if number >= 0:
            samples.append(1e3 * start.elapsed_time(end) / len(works))
    return measure.summary(samples), replay is not every


def compare(
    preset: Preset, direction: str, repeat: int, device: str = "cuda", time: Callable[..., Any] = microseconds
) -> dict[str, Any]:
    """A line of the result. The current stream is not the default one, so that what runs there can be captured."""
    torch._dynamo.reset()
    cases = sets(preset, device)
    result: dict[str, Any] = {
        **{"preset": preset.name, "dtype": preset.dtype, "direction": direction, "sets": len(cases)},
        **{"bytes": measure.moved_bytes(cases[0], direction), "microseconds": {}, "graph": {}},
        "not_taken": separate.broken(),
    }
    for name, make in makers(cases[0]).items():
        made: list[variants.Variant] = []
        try:
            made += [make(case) for case in cases]
            for variant in made:  # the backward of PyTorch runs on the stream of its forward
                variant.open(direction)
            measure.check_agreement(cases[0], direction, made[:1])
            seconds, captured = time([partial(variant.run, direction) for variant in made], repeat)
            result["microseconds"][name], result["graph"][name] = seconds, captured
        except Exception as error:  # others' kernels fail in their own ways
            if name in ("operator", "normrope"):
                raise
            text = str(error).strip().splitlines()
            result["not_taken"][name] = text[-1][:200] if text else type(error).__name__
        for variant in made:
            variant.close()
        if device == "cuda":
            torch.cuda.empty_cache()
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    text = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m normrope.bench.gpu", description=text)
    parser.add_argument("--preset", default="flux-ln,flux", help="with commas (flux-ln,flux)")
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16 or float32, with a comma (bfloat16)")
    parser.add_argument("--repeat", type=int, default=15)
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("normrope.bench.gpu: PyTorch sees no CUDA device", file=sys.stderr)
        return 2
    print(json.dumps({"torch": torch.__version__, "device": torch.cuda.get_device_name(0)}), flush=True)
    named = product(arguments.preset.split(","), arguments.dtype.split(","), ("forward", "backward"))
    failed = False
    with torch.cuda.stream(torch.cuda.Stream()):
        for name, dtype, direction in named:
            try:
                line = compare(replace(presets.PRESETS[name], dtype=dtype), direction, arguments.repeat)
            except Exception:  # the others may do
                traceback.print_exc()
                failed = True
            else:
                print(json.dumps(line), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
