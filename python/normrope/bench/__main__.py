"""Times the step beside PyTorch eager, torch.compile, oneDNN and a copy of the same bytes, in turns in one process.

Nothing is timed before every variant's results were held against PyTorch's in float32. `normrope` is the package's
function with autograd, as its users call it; `operator` the kernels alone, on memory that is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import normrope
from normrope import _native as native
from normrope.bench import system

DTYPES = ("float32", "float16", "bfloat16")
DIRECTIONS = ("forward", "backward", "both")
VARIANTS = ("operator", "normrope", "eager", "compile", "onednn")
SIZES = ("batch", "heads", "dim", "image", "text")


def _list_of(allowed: Sequence[str] | None) -> Callable[[str], list[str]]:
    """A reader of lists with commas, of allowed words or any; `all` is all of them."""

    def read(text: str) -> list[str]:
        if allowed and text == "all":
            return list(allowed)
        items = text.split(",")
        for item in items:
            if not item or (allowed and item not in allowed):
                raise argparse.ArgumentTypeError(f"'{item}', expected a list of {', '.join(allowed or ['names'])}")
        return items

    return read


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}', expected a whole number from 1 on")
    return int(text)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m normrope.bench", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--preset", type=_list_of(None), default=["flux-ln"], metavar="LIST", help="presets, or all (default flux-ln)")
    add("--dtype", type=_list_of(DTYPES), default=["float32", "bfloat16"], metavar="LIST", help="(float32,bfloat16)")
    add("--direction", type=_list_of(DIRECTIONS), default=list(DIRECTIONS), metavar="LIST", help="(all)")
    add("--variant", type=_list_of(VARIANTS), default=list(VARIANTS), metavar="LIST", help=f"({','.join(VARIANTS)})")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where the tensors are (cpu)")
    for size in SIZES:
        add(f"--{size}", type=int if size == "text" else _positive, metavar="N", help=f"the preset's {size} changed")
    add("--threads", type=_positive, metavar="N", help="of every variant (as many as the library takes)")
    add("--repeat", type=_positive, default=15, metavar="N", help="rounds that are measured (15)")
    add("--allocator", choices=system.ALLOCATORS, default="system", help="kept: freed memory is kept, in huge pages")
    add("--no-memory", dest="memory", action="store_false", help="leave out memory and oneDNN's part")
    add("--json", type=Path, metavar="FILE", help="write everything there, with each round's seconds")
    add("--plot", type=Path, metavar="FILE", help="draw it there, by its name .svg or .png")
    return parser.parse_args(argv)


class Comparison:
    """All results of a command line. Torch is imported with it, after the allocator was set."""

    def __init__(self, arguments: argparse.Namespace, step: Callable[[str], None]) -> None:
        import torch

        from normrope.bench import measure, presets, variants

        self.arguments, self.step = arguments, step
        self.measure, self.variants, self.torch, self.make_case = measure, variants, torch, presets.make
        self.threads = arguments.threads or native.default_threads()
        torch.set_num_threads(self.threads)
        known = presets.PRESETS
        wanted = list(known) if arguments.preset == ["all"] else arguments.preset
        for name in wanted:
            if name not in known:
                raise ValueError(f"--preset {name}: no such preset; there are {', '.join(known)}")
        self.changes = {size: getattr(arguments, size) for size in SIZES if getattr(arguments, size) is not None}
        self.presets = [replace(known[name], **self.changes) for name in wanted]
        if (arguments.dim or 2) % 2:
            raise ValueError(f"--dim {arguments.dim}, expected an even number")

    def heading(self) -> dict[str, Any]:
        """What all results have in common."""
        cuda = self.arguments.device == "cuda"
        return {
            "version": normrope.__version__,
            "isa": native.isa(),
            "torch": self.torch.__version__,
            "machine": {
                "cpu": self.torch.cuda.get_device_name() if cuda else system.processor(),
                "processors": os.cpu_count(),
            },
            "device": self.arguments.device,
            "threads": self.threads,
            "allocator": self.arguments.allocator,
            "repeat": self.arguments.repeat,
            "warm_up": self.measure.WARM_UP,
            "changes": self.changes,
        }

    @property
    def steps(self) -> int:
        """How often it reports a step."""
        rounds = len(self.arguments.direction) * (1 + self.measure.WARM_UP + self.arguments.repeat)
        probes = len(self.arguments.variant) * self.arguments.memory
        return len(self.presets) * len(self.arguments.dtype) * (1 + rounds + probes)

    def results(self) -> Iterator[dict[str, Any]]:
        """One for each preset, dtype and direction, like an entry of `normrope bench --json`, with more in it."""
        for preset in self.presets:
            for dtype in self.arguments.dtype:
                self.step(f"{preset.name} {dtype}: the case")
                case = self.make_case(replace(preset, dtype=dtype), self.arguments.device)
                yield from self._results_of(case, f"{preset.name} {dtype}")

    def _results_of(self, case: Any, label: str) -> Iterator[dict[str, Any]]:
        self.torch._dynamo.reset()
        made = [self.variants.make(name, case, keep_graph=True) for name in self.arguments.variant]
        probes = {}
        for variant in made if self.arguments.memory else ():
            self.step(f"{label}: memory of {variant.name}")
            if variant.directions:
                probes[variant.name] = found = self.measure.probe_memory(
                    [
                        *(case.preset.name, json.dumps({**self.changes, "dtype": case.preset.dtype}), variant.name),
                        *("--device", self.arguments.device, "--threads", str(self.threads)),
                    ]
                )
                if variant.name == "onednn" and not found["forward"]["onednn_primitives"]:
                    variant.directions, variant.missing = (), "oneDNN took no operation"
        for direction in self.arguments.direction:
            yield self._result(case, direction, f"{label} {direction}", made, probes)

    def _result(
        self, case: Any, direction: str, label: str, made: Sequence[Any], probes: dict[str, Any]
    ) -> dict[str, Any]:
        measure = self.measure
        ready = [variant for variant in made if direction in variant.directions]
        self.step(f"{label}: agreement")
        for variant in ready:
            variant.open(direction)
        differences = measure.check_agreement(case, direction, ready)
        copies = measure.Copies(measure.moved_bytes(case, direction), self.threads, self.arguments.device)
        works = copies.works | {v.name: lambda v=v: v.run(direction) for v in ready}
        samples = measure.time_in_turns(works, self.arguments.repeat, lambda: self.step(label))
        seconds = {name: measure.summary(times) for name, times in samples.items()}
        copies.close()
        for variant in made:
            variant.close()
        copy = min(copies.works, key=lambda name: seconds[name]["median"])
        names = [variant.name for variant in ready]
        base = "normrope" if "normrope" in names else names[0]
        to_copy = measure.ratios(seconds, copy, names)
        return {
            "preset": case.preset.name,
            "dtype": case.preset.dtype,
            "direction": direction,
            "isa": native.isa(),
            "threads": self.threads,
            "bytes": measure.moved_bytes(case, direction),
            "shape": case.shape,
            "seconds": seconds,
            "copy": copy,
            "ratios_to_copy": to_copy,
            "base": base,
            "ratios_to_base": measure.ratios(seconds, base, names),
            "output_bytes": case.output_bytes * (2 if direction == "both" else 1),
            "memory": {name: probes[name][direction] for name in names if name in probes},
            "differences": differences,
            "epsilon": self.torch.finfo(case.dtype).eps,
            "not_taken": {v.name: v.missing for v in made if v not in ready},
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it; the exit code: 1 where the variants disagree or cannot be compared, 2 for wrong usage."""
    arguments = parse(argv)
    system.set_allocator(arguments.allocator)
    from normrope.bench import measure, plot, report

    console = Console(width=None if sys.stdout.isatty() else 160)
    stderr = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # It refreshes when told to: no thread of its own beside what is timed.
    progress = Progress(
        *columns,
        console=stderr,
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        disable=not stderr.is_terminal,
    )
    task = progress.add_task("")

    def step(description: str) -> None:
        progress.update(task, description=description, advance=1, refresh=True)

    try:
        comparison = Comparison(arguments, step)
        everything = comparison.heading()
        report.print_heading(console, everything)
        everything["results"] = []
        progress.update(task, total=comparison.steps)
        progress.start()
        for result in comparison.results():
            everything["results"].append(result)
            progress.stop()
            report.print_result(console, result)
            progress.start()
    except subprocess.CalledProcessError as error:
        return error.returncode if error.returncode > 0 else 1  # it has said why
    except (ValueError, OSError) as error:
        print(f"normrope.bench: {error}", file=sys.stderr)
        return 2
    except measure.DisagreementError as error:
        print(f"normrope.bench: {error}", file=sys.stderr)
        return 1
    finally:
        progress.stop()
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n")
    if arguments.plot:
        plot.save(plot.read([everything]), plot.describe(everything), arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
