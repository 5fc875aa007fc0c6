"""One variant in a process of its own: the memory that it takes, and the oneDNN primitives that it runs.

Run by the benchmark, with ONEDNN_VERBOSE=1. Prints oneDNN's lines as they come, and before a line of JSON the mark.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from normrope.bench import system

MARK = "== "


def growth(work: Callable[[], Any], device: str) -> dict[str, int]:
    """Bytes of memory during the call at most, and after it, with its results, beyond those before it."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = work()
        after, most = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    else:
        system.trim()
        system.forget_peak()
        before, _ = system.resident()
        kept = work()
        after, most = system.resident()
    del kept
    return {"peak_bytes": most - before, "kept_bytes": after - before}


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("changes", help="of the preset, in JSON")
    parser.add_argument("variant")
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    system.return_freed_memory()

    import torch

    torch.set_num_threads(arguments.threads)
    from normrope.bench import presets, variants

    preset = replace(presets.PRESETS[arguments.preset], **json.loads(arguments.changes))
    case = presets.make(preset, arguments.device)
    variant = variants.make(arguments.variant, case, keep_graph=False)
    found = {}
    for direction in variant.directions:
        variant.open(direction)
        variant.run(direction)  # compiles, starts threads, loads what is loaded once
        variant.close()
        variant.open(direction)
        print(MARK + direction, flush=True)
        found[direction] = growth(partial(variant.run, direction), arguments.device)
        variant.close()
    print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
