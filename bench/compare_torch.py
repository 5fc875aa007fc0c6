"""Times the operator beside PyTorch eager, torch.compile, oneDNN and a copy of the same bytes, in turns in one process.

Nothing is timed before every variant's results were held against the operator's. Options after -- go to
`normrope make-case` and change every preset.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import system

ROOT = Path(__file__).resolve().parent.parent
DTYPES = ("float32", "float16", "bfloat16")
DIRECTIONS = ("forward", "backward")
VARIANTS = ("eager", "compile", "onednn")


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
    parser = argparse.ArgumentParser(
        description=__doc__, usage="%(prog)s [option ...] [-- make-case option ...]", allow_abbrev=False
    )
    add = parser.add_argument
    add("--preset", type=_list_of(None), default=["flux-ln"], metavar="LIST", help="presets, or all (default flux-ln)")
    add("--dtype", type=_list_of(DTYPES), default=["float32", "bfloat16"], metavar="LIST", help="(float32,bfloat16)")
    add("--direction", type=_list_of(DIRECTIONS), default=list(DIRECTIONS), metavar="LIST", help="(both)")
    add("--variant", type=_list_of(VARIANTS), default=list(VARIANTS), metavar="LIST", help="(eager,compile,onednn)")
    add("--threads", type=_positive, metavar="N", help="of every variant (as many as the library takes)")
    add("--repeat", type=_positive, default=15, metavar="N", help="rounds that are measured (15)")
    add("--allocator", choices=system.ALLOCATORS, default="system", help="kept: freed memory is kept, in huge pages")
    add("--no-memory", dest="memory", action="store_false", help="leave out memory and oneDNN's part")
    add("--json", type=Path, metavar="FILE", help="write everything there, with each round's seconds")
    add("--library", type=Path, default=ROOT / "build/lib/libnormrope.so", metavar="FILE", help="libnormrope.so")
    add("--command", type=Path, default=ROOT / "build/bin/normrope", metavar="FILE", help="the command normrope")
    add("recipe", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


class Comparison:
    """All results of a command line. Torch is imported with it, after the allocator was set."""

    def __init__(self, arguments: argparse.Namespace, step: Callable[[str], None]) -> None:
        import torch

        import cases
        import measure
        import native
        import variants

        self.arguments, self.step = arguments, step
        self.cases, self.measure, self.variants, self.torch = cases, measure, variants, torch
        self.library = native.Library(arguments.library)
        self.threads = arguments.threads or self.library.threads
        torch.set_num_threads(self.threads)
        known = cases.presets(arguments.command)
        self.presets = known if arguments.preset == ["all"] else arguments.preset
        for name in self.presets:
            if name not in known:
                raise ValueError(f"--preset {name}: no such preset; there are {', '.join(known)}")

    def heading(self) -> dict[str, Any]:
        """What all results have in common."""
        return {
            "version": self.library.version,
            "isa": self.library.isa,
            "torch": self.torch.__version__,
            "machine": {"cpu": system.processor(), "processors": os.cpu_count()},
            "threads": self.threads,
            "allocator": self.arguments.allocator,
            "repeat": self.arguments.repeat,
            "warm_up": self.measure.WARM_UP,
            "recipe": self.arguments.recipe,
        }

    @property
    def steps(self) -> int:
        """How often it reports a step."""
        rounds = len(self.arguments.direction) * (1 + self.measure.WARM_UP + self.arguments.repeat)
        probes = (1 + len(self.arguments.variant)) * self.arguments.memory
        return len(self.presets) * len(self.arguments.dtype) * (1 + rounds + probes)

    def results(self) -> Iterator[dict[str, Any]]:
        """One for each preset, dtype and direction, like an entry of `normrope bench --json`, with more in it."""
        for preset in self.presets:
            for dtype in self.arguments.dtype:
                with self.cases.folder() as folder:
                    path = Path(folder) / "case.safetensors"
                    self.step(f"{preset} {dtype}: the case")
                    self.cases.make(self.arguments.command, preset, dtype, self.arguments.recipe, path)
                    yield from self._results_of(self.cases.load(path), path, f"{preset} {dtype}")

    def _results_of(self, case: Any, path: Path, label: str) -> Iterator[dict[str, Any]]:
        self.torch._dynamo.reset()
        names = ["operator", *self.arguments.variant]
        made = [self.variants.make(name, case, self.library, self.threads, keep_graph=True) for name in names]
        probes = {}
        for variant in made if self.arguments.memory else ():
            self.step(f"{label}: memory of {variant.name}")
            if variant.directions:
                probes[variant.name] = found = self.measure.probe_memory(
                    path, variant.name, self.arguments.library, self.threads
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
        copies = measure.Copies(measure.moved_bytes(case, direction), self.threads)
        works = copies.works | {v.name: lambda v=v: v.run(direction) for v in ready}
        samples = measure.time_in_turns(works, self.arguments.repeat, lambda: self.step(label))
        seconds = {name: measure.summary(times) for name, times in samples.items()}
        copies.close()
        for variant in made:
            variant.close()
        copy = min(copies.works, key=lambda name: seconds[name]["median"])
        names = [variant.name for variant in ready]
        to_copy = measure.ratios(seconds, copy, names)
        return {
            "preset": case.preset,
            "dtype": str(case.dtype).removeprefix("torch."),
            "direction": direction,
            "isa": self.library.isa,
            "threads": self.threads,
            "bytes": measure.moved_bytes(case, direction),
            "shape": case.shape,
            "seconds": seconds,
            "copy": copy,
            "ratio_to_copy": to_copy["operator"],
            "ratios_to_copy": to_copy,
            "ratios_to_operator": measure.ratios(seconds, "operator", names),
            "memory": {name: probes[name][direction] for name in names if name in probes},
            "differences": differences,
            "epsilon": self.torch.finfo(case.dtype).eps,
            "not_taken": {v.name: v.missing for v in made if v not in ready},
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it; the exit code: 1 where the variants disagree or cannot be compared, 2 for wrong usage."""
    arguments = parse(argv)
    system.set_allocator(arguments.allocator)
    import cases
    import measure
    import report

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
        print(f"compare_torch: {error}", file=sys.stderr)
        return 2
    except (cases.NotComparedError, measure.DisagreementError) as error:
        print(f"compare_torch: {error}", file=sys.stderr)
        return 1
    finally:
        progress.stop()
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
