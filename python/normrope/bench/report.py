"""A comparison's results on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

MIB = 1 << 20
NOTABLE = 0.03  # of the largest parameter gradient: more than rounding the result to any dtype


def print_heading(console: Console, everything: dict[str, Any]) -> None:
    """What all results have in common."""
    console.print(
        f"normrope {everything['version']} ({everything['isa']}), torch {everything['torch']}, "
        f"{everything['machine']['cpu']}, {everything['threads']} threads, allocator {everything['allocator']}\n"
        f"medians of {everything['repeat']} rounds in turn, after {everything['warm_up']}; * the faster copy; peak: "
        "most memory during a call (/ outputs: over the results' bytes), kept: after it with its results, both beyond "
        "what was before\n",
        highlight=False,
        soft_wrap=True,
    )


def _measured(result: dict[str, Any], name: str) -> list[str]:
    """Memory and oneDNN's part, where they were probed."""
    found = result["memory"].get(name)
    if not found:
        return []
    ran = ", ".join(found["onednn_primitives"]) or "-"
    peak, outputs = found["peak_bytes"], result["output_bytes"]
    return [f"{peak / MIB:,.0f}", f"{peak / outputs:.2f}", f"{found['kept_bytes'] / MIB:,.0f}", ran]


def print_result(console: Console, result: dict[str, Any]) -> None:
    """A row for each variant, and why there is none for others."""
    shape, base = result["shape"], result["base"]
    title = (
        f"{result['preset']} {result['dtype']} {result['direction']}: {shape['heads']} x {shape['dim']}, "
        f"{shape['image']} + {shape['text']} positions, {result['bytes'] / 1e6:,.1f} MB"
    )
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for text in ("median ms", "quartiles", "/ copy", f"/ {base}", "peak MiB", "/ outputs", "kept MiB"):
        table.add_column(text, justify="right", no_wrap=True)
    table.add_column("oneDNN ran", no_wrap=True)
    for name, s in result["seconds"].items():
        to_base = result["ratios_to_base"].get(name)
        table.add_row(
            f"{name} *" if name == result["copy"] else name,
            f"{1e3 * s['median']:.2f}",
            f"{1e3 * s['lower_quartile']:.2f} - {1e3 * s['upper_quartile']:.2f}",
            f"{s['median'] / result['seconds'][result['copy']]['median']:.2f}",
            f"{to_base:.2f}" if to_base else "",
            *_measured(result, name),
        )
    console.print(table)
    for name, found in result["differences"].items():
        share = found["parameters"] * result["epsilon"]
        if share > NOTABLE:
            text = f"{name}: parameter gradients are off by up to {share:.0%} of their largest value"
            console.print(text, highlight=False, soft_wrap=True)
    for name, reason in result["not_taken"].items():
        console.print(f"{name}: not taken: {reason}", highlight=False, soft_wrap=True)
    console.print()
