"""Times a training step of transformer blocks of diffusers, as they are and patched, in turns in one process.

A block is whole: modulation, projections, the step, attention, MLP, with random weights. Nothing is timed before every
variant's output and gradients were held against those of diffusers in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import normrope
from normrope import _native as native
from normrope.bench import probe, system
from normrope.bench.__main__ import DTYPES, _list_of, _positive
from normrope.bench.report import MIB

VARIANTS = ("diffusers", "patched", "compiled", "patched-compiled")
DIRECTIONS = ("forward", "step")
DIM = 128
# A variant may be this much further from float32 than diffusers is, and this many epsilons.
FACTOR, EPSILONS = 3, 256


@dataclass(frozen=True)
class Block:
    """Sizes of a block, and how to make and call it."""

    name: str
    make: Callable[[int], Any]  # of the number of heads
    call: Callable[..., Any]  # of the block, image, text, time and tables
    image: int
    text: int
    heads: int = 8
    rope_on: str = "joined"


def _flux(heads: int) -> Any:
    from diffusers.models.transformers.transformer_flux import FluxTransformerBlock

    return FluxTransformerBlock(heads * DIM, heads, DIM)


def _hunyuan_video(heads: int) -> Any:
    from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformerBlock

    return HunyuanVideoTransformerBlock(heads, DIM, mlp_ratio=4.0)


BLOCKS = {
    block.name: block
    for block in (
        Block("flux", _flux, lambda block, *arguments: block(*arguments)[::-1], 1024, 128),
        Block(
            "hunyuan-video",
            _hunyuan_video,
            lambda block, image, text, time, tables: block(image, text, time, None, tables),
            *(2048, 64),
            rope_on="image",
        ),
    )
}


class Step:
    """One variant of a block on fixed inputs."""

    def __init__(self, block: Block, dtype: str, variant: str, device: str) -> None:
        import torch
        from torch import nn

        torch.manual_seed(7)
        width = block.heads * DIM
        rows = [torch.randn(1, length, width) for length in (block.image, block.text)]
        gradients = [torch.randn_like(x) for x in rows]
        time = torch.randn(1, width)
        angles = torch.rand(block.image + (block.text if block.rope_on == "joined" else 0), DIM // 2)
        self.tables = [f(angles).repeat_interleave(2, 1).to(device) for f in (torch.cos, torch.sin)]
        # In a list, because patch looks for names.
        self.model = nn.ModuleList([block.make(block.heads)]).to(device, getattr(torch, dtype))
        self.rows = [x.to(device, getattr(torch, dtype)).requires_grad_() for x in rows]
        self.time, *self.gradients = [x.to(device, getattr(torch, dtype)) for x in (time, *gradients)]
        if variant.startswith("patched"):
            normrope.diffusers.patch(self.model)  # type: ignore[attr-defined]
        module = self.model[0]
        self.call = partial(block.call, torch.compile(module) if variant.endswith("compiled") else module)
        self.torch = torch

    def run(self, direction: str) -> dict[str, Any]:
        """The outputs of a forward that keeps nothing, or of a step with all gradients."""
        if direction == "forward":
            with self.torch.no_grad():
                return self._named(self.call(*self.rows, self.time, self.tables))
        outputs = self.call(*self.rows, self.time, self.tables)
        named = {f"input {i}": x for i, x in enumerate(self.rows)} | dict(self.model.named_parameters())
        gradients = self.torch.autograd.grad(outputs, list(named.values()), self.gradients)
        return self._named(outputs) | dict(zip(named, gradients))

    def saved_bytes(self) -> int:
        """What a forward keeps for the backward, beside parameters and inputs."""
        given = {
            x.untyped_storage().data_ptr() for x in (*self.model.parameters(), *self.rows, *self.tables, self.time)
        }
        found = {}

        def pack(x: Any) -> Any:
            storage = x.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            return x

        with self.torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            outputs = self.call(*self.rows, self.time, self.tables)
        del outputs
        return sum(size for address, size in found.items() if address not in given)

    @staticmethod
    def _named(outputs: Sequence[Any]) -> dict[str, Any]:
        return {f"output {i}": x.detach() for i, x in enumerate(outputs)}


def distances(found: dict[str, Any], exact: dict[str, Any]) -> dict[str, float]:
    """Of each tensor, root mean square, in units of the exact one's."""
    return {
        name: float((found[name].float() - x).square().mean().sqrt() / x.square().mean().sqrt())
        for name, x in exact.items()
    }


def check_agreement(block: Block, dtype: str, steps: dict[str, Step], device: str) -> float:
    """The largest distance from diffusers in float32 of all variants.

    Raises:
        DisagreementError: a variant is further from it than diffusers in this dtype may be.
    """
    import torch

    from normrope.bench.measure import DisagreementError

    exact = Step(block, "float32", "diffusers", device).run("step")
    allowed = distances(Step(block, dtype, "diffusers", device).run("step"), exact)
    worst = 0.0
    for variant, step in steps.items():
        for name, distance in distances(step.run("step"), exact).items():
            worst = max(worst, distance)
            if not distance <= FACTOR * allowed[name] + EPSILONS * torch.finfo(getattr(torch, dtype)).eps:
                raise DisagreementError(f"{block.name} {dtype}: {variant} is off by {distance:.2g} in {name}")
    return worst


def memory(block: Block, dtype: str, variant: str, arguments: argparse.Namespace) -> dict[str, int]:
    """Of a step, measured in a process of its own."""
    sizes = [f"--{name}={getattr(block, name)}" for name in ("heads", "image", "text")]
    options = [f"--block={block.name}", f"--dtype={dtype}", f"--variant={variant}", f"--threads={arguments.threads}"]
    command = [sys.executable, "-m", __spec__.name, *options, *sizes, f"--device={arguments.device}", "--probe"]
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}  # huge pages would count whole
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(answer.rpartition(probe.MARK)[2])


def print_probe(block: Block, dtype: str, variant: str, device: str) -> None:
    """What `memory` reads."""
    step = Step(block, dtype, variant, device)
    step.run("step")
    print(probe.MARK + json.dumps(probe.growth(partial(step.run, "step"), device)))


def measured(block: Block, dtype: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All variants of one block in one dtype."""
    import torch

    from normrope.bench import measure

    torch._dynamo.reset()
    steps = {variant: Step(block, dtype, variant, arguments.device) for variant in arguments.variant}
    result: dict[str, Any] = {"block": block.name, "dtype": dtype, "dim": DIM, "threads": arguments.threads}
    result |= {name: getattr(block, name) for name in ("heads", "image", "text")}
    result["distance"] = check_agreement(block, dtype, steps, arguments.device)
    result["saved_bytes"] = {variant: step.saved_bytes() for variant, step in steps.items()}
    base = next(iter(steps))
    for direction in DIRECTIONS:
        works: dict[str, Callable[[], Any]] = {variant: partial(step.run, direction) for variant, step in steps.items()}
        samples = measure.time_in_turns(works, arguments.repeat, lambda: None)
        seconds = {variant: measure.summary(times) for variant, times in samples.items()}
        result[direction] = {"seconds": seconds, "ratios": measure.ratios(seconds, base, steps)}
    if arguments.memory:
        result["memory"] = {variant: memory(block, dtype, variant, arguments) for variant in steps}
    return result


def print_result(console: Console, result: dict[str, Any]) -> None:
    """A row for each variant."""
    title = (
        f"{result['block']} {result['dtype']}: {result['heads']} x {result['dim']}, "
        f"{result['image']} + {result['text']} positions"
    )
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    variants = list(result["step"]["seconds"])
    table.add_column("", no_wrap=True)
    for text in ("forward ms", f"/ {variants[0]}", "step ms", "quartiles", f"/ {variants[0]}", "saved MiB", "peak MiB"):
        table.add_column(text, justify="right", no_wrap=True)
    for variant in variants:
        forward, step = (result[direction]["seconds"][variant] for direction in DIRECTIONS)
        peak = result["memory"][variant]["peak_bytes"] / MIB if "memory" in result else None
        table.add_row(
            variant,
            f"{1e3 * forward['median']:.1f}",
            f"{result['forward']['ratios'][variant]:.2f}",
            f"{1e3 * step['median']:.1f}",
            f"{1e3 * step['lower_quartile']:.1f} - {1e3 * step['upper_quartile']:.1f}",
            f"{result['step']['ratios'][variant]:.2f}",
            f"{result['saved_bytes'][variant] / MIB:,.1f}",
            "" if peak is None else f"{peak:,.0f}",
        )
    console.print(table)
    console.print()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m normrope.bench.blocks", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--block", type=_list_of(tuple(BLOCKS)), default=list(BLOCKS), metavar="LIST", help=f"({','.join(BLOCKS)})")
    add("--dtype", type=_list_of(DTYPES), default=["float32", "bfloat16"], metavar="LIST", help="(float32,bfloat16)")
    add(
        "--variant", type=_list_of(VARIANTS), default=["diffusers", "patched"], metavar="LIST", help=", ".join(VARIANTS)
    )
    for size in ("heads", "image", "text"):
        add(f"--{size}", type=_positive, metavar="N", help=f"another number than the block's ({size})")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where the tensors are (cpu)")
    add("--threads", type=_positive, default=native.default_threads(), metavar="N", help="of torch and of the step")
    add("--repeat", type=_positive, default=9, metavar="N", help="rounds that are measured (9)")
    add("--no-memory", dest="memory", action="store_false", help="leave out memory")
    add("--json", type=Path, metavar="FILE", help="write everything there, with each round's seconds")
    add("--probe", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it; the exit code: 1 where variants disagree, 2 for wrong usage."""
    arguments = parse(argv)
    if arguments.probe:
        system.return_freed_memory()
    import torch

    from normrope.bench.measure import DisagreementError

    torch.set_num_threads(arguments.threads)
    changes = {s: getattr(arguments, s) for s in ("heads", "image", "text") if getattr(arguments, s) is not None}
    blocks = [replace(BLOCKS[name], **changes) for name in arguments.block]
    if arguments.probe:
        print_probe(blocks[0], arguments.dtype[0], arguments.variant[0], arguments.device)
        return 0
    console = Console(width=None if sys.stdout.isatty() else 160)
    everything: dict[str, Any] = {
        "version": normrope.__version__,
        "isa": native.isa(),
        "torch": torch.__version__,
        "machine": {"cpu": system.processor(), "processors": os.cpu_count()},
        "device": arguments.device,
        "repeat": arguments.repeat,
        "results": [],
    }
    console.print(
        f"normrope {everything['version']} ({everything['isa']}), torch {everything['torch']}, "
        f"{everything['machine']['cpu']}, {arguments.threads} threads\nmedians of {arguments.repeat} rounds in turn; "
        "forward: without gradients; step: forward, and gradients of inputs and parameters; saved: what the forward "
        "keeps for the backward; peak: most memory during a step, beyond what was before\n",
        highlight=False,
        soft_wrap=True,
    )
    try:
        for block in blocks:
            for dtype in arguments.dtype:
                everything["results"].append(measured(block, dtype, arguments))
                print_result(console, everything["results"][-1])
    except (DisagreementError, subprocess.CalledProcessError) as error:
        print(f"normrope.bench.blocks: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
