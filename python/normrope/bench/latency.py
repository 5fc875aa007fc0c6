"""What a call costs beyond the library's: a tiny problem, over and over, beside the bare nr_plan_run.

python -m normrope.bench.latency
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import normrope
from normrope import _native as native
from normrope.bench import measure, presets, variants


def bare(operator: variants.Operator, direction: str) -> Callable[[], None]:
    """The library's function alone, with its arguments made."""
    prepared, addresses, workspace = operator.ready[direction]
    plan = prepared.plan
    segments = bytearray(plan.template)
    words = memoryview(segments).cast("Q")
    for word, (source, offset) in zip(prepared.words, prepared.sources):
        words[word] = addresses[source] + offset
    held = (ctypes.c_char * len(segments)).from_buffer(segments)
    arguments = plan.handle, ctypes.addressof(held), workspace.data_ptr(), plan.workspace_size, None

    def call(run: Any = native.LIBRARY.nr_plan_run, held: Any = held) -> None:
        run(*arguments)

    return call


def per_call(works: dict[str, Callable[[], Any]], calls: int, repeat: int) -> dict[str, list[float]]:
    """Seconds for each of `calls` calls in a row, of each in turn, several times."""
    samples: dict[str, list[float]] = {name: [] for name in works}
    gc.collect()
    gc.disable()
    try:
        for number in range(repeat + 1):
            for name, work in works.items():
                start = time.perf_counter()
                for _ in range(calls):
                    work()
                if number:
                    samples[name].append((time.perf_counter() - start) / calls)
    finally:
        gc.enable()
    return samples


def measured(preset: str, threads: int, calls: int, repeat: int) -> dict[str, dict[str, Any]]:
    """Seconds of the bare function, of the call and of autograd's part in it, by what is called."""
    torch.set_num_threads(threads)
    case = presets.make(presets.PRESETS[preset])
    operator = variants.Operator(case)
    operator.run("both")
    step = variants.make("normrope", case, keep_graph=True)

    def inference() -> None:
        with torch.no_grad():
            step.run("forward")

    class Nothing(torch.autograd.Function):
        """As many tensors, with fresh memory for as many gradients, and no work: what any function costs there."""

        @staticmethod
        def forward(ctx: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            ctx.save_for_backward(*tensors)
            return tuple([torch.empty_like(t) for t in case.incoming])

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple([torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for t in ctx.saved_tensors])

    recorded = step.case  # type: ignore[attr-defined]
    inputs = [t for t in recorded.tensors.values() if t.requires_grad]
    nothing = Nothing.apply(*inputs)

    def inference_of_nothing() -> None:
        with torch.no_grad():
            Nothing.apply(*inputs)

    def backward_of_nothing() -> None:
        torch.autograd.grad(nothing, inputs, case.incoming, retain_graph=True)

    step.open("backward")
    works = {
        "forward, no gradients wanted": ("forward", inference, inference_of_nothing),
        "forward": ("forward", lambda: step.run("forward"), lambda: Nothing.apply(*inputs)),
        "backward": ("backward", lambda: step.run("backward"), backward_of_nothing),
    }
    found = {}
    for name, (direction, call, autograd) in works.items():
        timed = {"bare": bare(operator, direction), "call": call, "autograd": autograd}
        found[name] = {kind: measure.summary(samples) for kind, samples in per_call(timed, calls, repeat).items()}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m normrope.bench.latency", description=__doc__)
    parser.add_argument("--preset", choices=list(presets.PRESETS), default="reference", help="(reference)")
    parser.add_argument("--threads", type=int, default=native.default_threads(), metavar="N")
    parser.add_argument("--calls", type=int, default=1000, metavar="N", help="in a row (1000)")
    parser.add_argument("--repeat", type=int, default=15, metavar="N", help="how often that is measured (15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    arguments = parser.parse_args(argv)
    found = measured(arguments.preset, arguments.threads, arguments.calls, arguments.repeat)
    title = f"{arguments.preset}: microseconds a call, medians (quartiles), {arguments.threads} threads"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("", "nr_plan_run", "the call", "of it autograd alone", "beyond nr_plan_run", "and beyond autograd"):
        table.add_column(column, justify="right" if column else "left")
    for name, timed in found.items():
        texts = [
            f"{s['median'] * 1e6:.1f} ({s['lower_quartile'] * 1e6:.1f} - {s['upper_quartile'] * 1e6:.1f})"
            for s in timed.values()
        ]
        beyond = timed["call"]["median"] - timed["bare"]["median"]
        rest = [f"{seconds * 1e6:.1f}" for seconds in (beyond, beyond - timed["autograd"]["median"])]
        table.add_row(name, *texts, *rest)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if arguments.json:
        version = {"version": normrope.__version__, "torch": torch.__version__, "threads": arguments.threads}
        arguments.json.write_text(json.dumps({**version, "results": found}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
