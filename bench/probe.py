"""One variant in a process of its own: the memory that it takes, and the oneDNN primitives that it runs.

Run by compare_torch.py, with ONEDNN_VERBOSE=1. Prints oneDNN's lines as they come, and before a line of JSON the mark.
"""

import argparse
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import system

MARK = "== "


def growth(work: Callable[[], Any]) -> dict[str, int]:
    """Bytes of memory during the call at most, and after it, with its results, beyond those before it."""
    gc.collect()
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
    parser.add_argument("case", type=Path)
    parser.add_argument("variant")
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    system.return_freed_memory()

    import torch

    torch.set_num_threads(arguments.threads)
    import cases
    import native
    import variants

    case = cases.load(arguments.case)
    library = native.Library(arguments.library)
    variant = variants.make(arguments.variant, case, library, arguments.threads, keep_graph=False)
    found = {}
    for direction in variant.directions:
        variant.open(direction)
        variant.run(direction)  # compiles, starts threads, loads what is loaded once
        variant.close()
        variant.open(direction)
        print(MARK + direction, flush=True)
        found[direction] = growth(lambda direction=direction: variant.run(direction))
        variant.close()
    print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
