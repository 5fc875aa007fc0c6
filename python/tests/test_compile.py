"""torch.compile: whole graphs, lengths that change without compiling anew, the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import normrope
from cases import B, D, N, arguments
from normrope import Segment

LENGTHS = ((40, 9), (64, 11), (33, 17), (100, 3))  # none is another dimension by chance


def gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    incoming = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
    return torch.autograd.grad(outputs, inputs, incoming)


def made(length: int, text: int, dtype: torch.dtype) -> dict[str, Tensor]:
    given = arguments(dtype, bias=False)
    for name in ("query", "key", "value"):
        given[name] = torch.randn(B, length, N, D).to(dtype).requires_grad_()
        given[f"encoder_{name}"] = torch.randn(B, text, N, D).to(dtype).requires_grad_()
    given["rope_cos"], given["rope_sin"] = torch.randn(2, length + text, D).unbind(0)
    return given


def same(run: Callable[[dict[str, Tensor]], tuple[Tensor, ...]], backend: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counter)
    compilations = set()
    for number, (length, text) in enumerate(LENGTHS):
        given = made(length, text, dtype)
        inputs = [t for t in given.values() if t.requires_grad]
        found, expected = compiled(given), run(given)
        pairs = [*zip(found, expected), *zip(gradients(found, inputs, number), gradients(expected, inputs, number))]
        for a, b in pairs:
            assert a.dtype == b.dtype
            assert a.stride() == b.stride()
            assert torch.equal(a, b)
        compilations.add(counter.frame_count)
    assert len(compilations) == 1, "a length was compiled anew"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_function(backend: str, dtype: torch.dtype) -> None:
    def run(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return normrope.norm_rope_concat(**given, norm="rms_affine", rope="interleaved", order="text_first")

    same(run, backend, dtype)


def test_general_form() -> None:
    def run(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        tables = {"rope": "half", "cos": given["rope_cos"], "sin": given["rope_sin"]}
        weights = {"norm": "rms_affine", "weight": given["norm_query_weight"] + given["norm_key_weight"]}
        weights["weight"] = weights["weight"] + given["norm_added_query_weight"] + given["norm_added_key_weight"]
        packed = torch.cat([given["query"], given["key"], given["value"]], 2)
        text = torch.cat([given["encoder_query"], given["encoder_key"], given["encoder_value"]], 2)
        segments = [
            Segment(
                x, i, (i * N, N), **({**weights, **tables} if i < 2 else {}), rope_position=None if x is text else -2
            )
            for i in range(3)
            for x in (text, packed)
        ]
        return normrope.norm_rope(segments, layout="BSND")

    same(run, "aot_eager", torch.float32)


def test_module() -> None:
    module = normrope.nn.NormRopeConcat(D, norm="layer_affine", order="text_first")

    def run(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        streams = [given[prefix + name] for prefix in ("", "encoder_") for name in ("query", "key", "value")]
        unused = sum(t.sum() for name, t in given.items() if "norm" in name) * 0
        q, k, v = module(*streams, rope_cos=given["rope_cos"], rope_sin=given["rope_sin"])
        return q + unused, k, v

    same(run, "aot_eager", torch.float32)


def test_inference() -> None:
    given = {name: t.detach() for name, t in made(40, 9, torch.float32).items()}

    def run() -> tuple[Tensor, ...]:
        return normrope.norm_rope_concat(**given, norm="rms_affine", rope="half")

    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(torch.compile(run, fullgraph=True, backend="aot_eager")(), run()))


def test_export() -> None:
    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = normrope.nn.NormRopeConcat(D, rope="none")

        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
            return self.step(query, key, value)

    step, streams = Step(), tuple(torch.randn(3, B, 8, N, D).unbind(0))
    length = torch.export.Dim("length", min=2, max=1024)
    with torch.no_grad():
        program = torch.export.export(step, streams, dynamic_shapes=[{1: length}] * 3)
        longer = tuple(torch.randn(3, B, 21, N, D).unbind(0))
        assert all(torch.equal(a, b) for a, b in zip(program.module()(*longer), step(*longer)))


@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_positions_symbolic(strict: bool) -> None:
    class Step(torch.nn.Module):
        def forward(self, text: Tensor, image: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
            tables = {"rope": "half", "cos": cos, "sin": sin}
            return normrope.norm_rope(
                [
                    Segment(text, "joined", **tables, rope_position=text.shape[1] - image.shape[1]),
                    Segment(image, "joined", **tables, rope_position=-text.shape[1]),
                ]
            )

    def given(text: int, image: int) -> tuple[Tensor, ...]:
        return torch.randn(B, text, N, D), torch.randn(B, image, N, D), *torch.randn(2, 40, D).unbind(0)

    lengths = [{1: torch.export.Dim(name, min=2, max=1024)} for name in ("text", "image")]
    with torch.no_grad():
        program = torch.export.export(Step(), given(8, 9), strict=strict, dynamic_shapes=[*lengths, None, None])
        for other in (given(21, 5), given(7, 7)):
            assert torch.equal(program.module()(*other)[0], Step()(*other)[0])


@pytest.mark.parametrize("strict", [False, True])
def test_export_reads_symbolic_heads(strict: bool) -> None:
    """They become numbers of the specification, which torch.export allows where it may choose."""

    class Step(torch.nn.Module):
        def forward(self, packed: Tensor) -> tuple[Tensor, ...]:
            half = packed.shape[2] // 2
            return normrope.norm_rope([Segment(packed, i, (i * half, half), norm="rms") for i in range(2)])

    packed = torch.randn(B, 8, N, D)
    with torch.no_grad():
        program = torch.export.export(
            Step(), (packed,), strict=strict, dynamic_shapes=[{1: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}]
        )
        longer = torch.randn(B, 21, N, D)
        assert all(torch.equal(a, b) for a, b in zip(program.module()(longer), Step()(longer)))
