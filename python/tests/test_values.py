"""Results and gradients against the reference, in float64-derived bounds, over everything that a segment can be."""

from __future__ import annotations

import pytest
import torch

import normrope
import reference
from cases import DTYPES, B, D, N, S, T, arguments, check_rows, check_sums, converted, exact, leaves, parameter, rows
from normrope import Segment

NORMS = ("none", "layer", "layer_affine", "rms", "rms_affine")


def check(segments: list[Segment], layout: str = "BNSD") -> None:
    """Both directions, all gradients."""
    wide = converted(segments, exact)
    found, expected = normrope.norm_rope(segments, layout=layout), reference.norm_rope(wide, layout)
    assert len(found) == len(expected)
    assert all(t.is_contiguous() for t in found)
    incoming = [torch.randn_like(t) for t in found]
    for f, e in zip(found, expected):
        check_rows(f, e)
    inputs, exact_inputs = leaves(segments), leaves(wide)
    wanted = [i for i, t in enumerate(inputs) if t.requires_grad]
    gradients = torch.autograd.grad(found, [inputs[i] for i in wanted], incoming)
    exact_gradients = torch.autograd.grad(
        expected, [exact_inputs[i] for i in wanted], [g.double() for g in incoming], materialize_grads=True
    )  # the reference never touches tables of which it uses no row
    x = {id(s.x) for s in segments}
    for i, f, e in zip(wanted, gradients, exact_gradients):
        assert f.dtype == inputs[i].dtype
        if id(inputs[i]) in x:
            check_rows(f, e, (-2, -1))
        else:
            check_sums(f, e, B * (S + T) * N * 4)


def affine(norm: str, *shape: int, dtype: torch.dtype = torch.float32) -> dict:
    made = {"norm": norm}
    if norm.endswith("affine"):
        made["weight"] = parameter(*shape, dtype=dtype)
    if norm == "layer_affine":
        made["bias"] = parameter(*shape, dtype=dtype)
    return made


def turned(rope: str | int, *shape: int, dtype: torch.dtype = torch.float32) -> dict:
    return {"rope": rope, "cos": parameter(*shape, dtype=dtype), "sin": parameter(*shape, dtype=dtype)}


@pytest.mark.parametrize("layout", ["BNSD", "BSND"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
def test_norms(norm: str, dtype: torch.dtype, layout: str) -> None:
    check([Segment(rows(S, dtype), **affine(norm, D, dtype=dtype), **turned("interleaved", S, D))], layout)


@pytest.mark.parametrize("norm", ["layer", "layer_affine", "rms", "rms_affine"])
@pytest.mark.parametrize("shape", [(D,), (N, D), (N * D,)])
def test_norm_over_all_heads(norm: str, shape: tuple[int, ...]) -> None:
    check([Segment(rows(S), **affine(norm, *shape), scope="all_heads", **turned("half", S, D))])


@pytest.mark.parametrize("shape", [(N, D), (N * D,)])
def test_weights_for_each_head(shape: tuple[int, ...]) -> None:
    check([Segment(rows(S), **affine("layer_affine", *shape))])


@pytest.mark.parametrize("rope", ["interleaved", "half", 4, 6])
@pytest.mark.parametrize("channels", [D, 12])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ropes(rope: str | int, channels: int, dtype: torch.dtype) -> None:
    check([Segment(rows(S, dtype), norm="rms", **turned(rope, S, channels))])


@pytest.mark.parametrize(("rope", "channels"), [("interleaved", 6), ("half", 6), ("half", 2), (4, 8)])
def test_partial_rope(rope: str | int, channels: int) -> None:
    check([Segment(rows(S), **affine("rms_affine", D), **turned(rope, S, channels))])


@pytest.mark.parametrize(
    "shape", [(S, D), (1, S, D), (B, S, D), (1, S, 1, D), (B, S, 1, D), (1, S, N, D), (B, S, N, D), (B, S, N, 4)]
)
def test_shapes_of_tables(shape: tuple[int, ...]) -> None:
    check([Segment(rows(S), **affine("layer_affine", D), **turned("half", *shape))])


@pytest.mark.parametrize("position", [-3, 0, 2, 5, 100, -100])
@pytest.mark.parametrize("table_rows", [3, S, 30])
def test_rows_beyond_the_tables_pass(position: int, table_rows: int) -> None:
    check([Segment(rows(S), norm="layer", **turned("interleaved", table_rows, D), rope_position=position)])


def test_dtypes_of_their_own() -> None:
    check(
        [
            Segment(rows(S, torch.bfloat16), **affine("layer_affine", D), **turned(2, S, D, dtype=torch.float16)),
            Segment(rows(S, torch.float32), output=1, **affine("rms_affine", D, dtype=torch.float16)),
        ]
    )


def test_one_weight_and_one_table_for_several_segments() -> None:
    shared, tables = affine("layer_affine", D), turned("interleaved", S + T, D)
    check([Segment(rows(length), output=o, **shared, **tables) for o in range(2) for length in (T, S)])


def test_three_streams_lengths_and_heads() -> None:
    tables = turned("half", 40, D)
    check(
        [
            Segment(rows(S), "q", **affine("rms_affine", D), **tables),
            Segment(rows(S + 1, heads=2), "k", **affine("rms_affine", D), **tables),
            Segment(rows(T), "q", **affine("layer_affine", D), **tables),
            Segment(rows(1), "q", **tables),
            Segment(rows(5, heads=2, dim=6), "v"),
        ],
        "BSND",
    )


@pytest.mark.parametrize("layout", ["BNSD", "BSND"])
def test_packed_projection(layout: str) -> None:
    packed = rows(S, heads=N + 2 * 2)
    tables = turned("interleaved", S, D)
    check(
        [
            Segment(packed, "q", heads=(0, N), **affine("rms_affine", D), **tables),
            Segment(packed, "k", heads=(N, 2), **affine("rms_affine", D), **tables),
            Segment(packed, "v", heads=(N + 2, 2)),
        ],
        layout,
    )


def test_packed_projection_in_part() -> None:
    """Heads that no segment takes have a gradient of zero."""
    packed = rows(S, heads=6)
    check([Segment(packed, heads=(4, 2), norm="rms"), Segment(packed, "k", heads=(1, 2), norm="layer")])


def test_heads_that_overlap() -> None:
    packed = rows(S, heads=4)
    check([Segment(packed, heads=(0, 3), norm="rms"), Segment(packed, "k", heads=(1, 3), norm="layer")])


def test_one_tensor_as_two_rows() -> None:
    x = rows(S)
    check([Segment(x, norm="rms"), Segment(x, output=1, norm="layer"), Segment(x, output=1)])


@pytest.mark.parametrize("dim", [2, 40, 64, 88, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_head_sizes(dim: int, dtype: torch.dtype) -> None:
    x = rows(5, dtype, heads=3, dim=dim)
    norm = "rms_affine" if dim == 2 else "layer_affine"  # of two numbers LayerNorm leaves their order alone
    check([Segment(x, **affine(norm, dim, dtype=dtype), **turned("half", 5, dim))])


@pytest.mark.parametrize("order", ["image_first", "text_first", 0, 1])
@pytest.mark.parametrize("rope_on", ["joined", "image"])
@pytest.mark.parametrize("norms", [("layer_affine", None), ("rms_affine", "rms_affine"), ("layer_affine", "rms")])
def test_the_published_operator(order: str | int, rope_on: str, norms: tuple[str, str | None]) -> None:
    given = arguments(torch.bfloat16)
    kinds = (norms[0], norms[0] if norms[1] is None else norms[1])
    for stream, kind in zip(("norm_", "norm_added_"), kinds):
        for projection in ("query", "key"):
            if kind != "layer_affine":
                del given[f"{stream}{projection}_bias"]
            if not kind.endswith("affine"):
                del given[f"{stream}{projection}_weight"]
    options = {"norm": norms[0], "norm_added": norms[1], "rope": "half", "order": order, "rope_on": rope_on}
    found = normrope.norm_rope_concat(**given, **options, eps=1e-4, eps_added=1e-5)
    segments = []
    streams = [("", "norm_", kinds[0], 1e-4), ("encoder_", "norm_added_", kinds[1], 1e-5)]
    for projection in ("query", "key", "value"):
        for prefix, norm_prefix, kind, eps in streams if order in ("image_first", 0) else streams[::-1]:
            segment = Segment(exact(given[prefix + projection]).detach(), projection)
            if projection != "value":
                segment.norm, segment.eps = kind, eps
                for name in ("weight", "bias"):
                    tensor = given.get(f"{norm_prefix}{projection}_{name}")
                    setattr(segment, name, None if tensor is None else exact(tensor).detach())
                if rope_on == "joined" or not prefix:
                    segment.rope, segment.cos, segment.sin = "half", exact(given["rope_cos"]), exact(given["rope_sin"])
                    segment.rope_position = 0 if rope_on == "image" else None
            segments.append(segment)
    for f, e in zip(found, reference.norm_rope(segments)):
        check_rows(f, e)


def test_numbers_for_names() -> None:
    given = arguments()
    names = normrope.norm_rope_concat(**given, norm="layer_affine", rope="interleaved", order="text_first")
    numbers = normrope.norm_rope_concat(**given, norm=2, rope=2, order=1)
    assert all(torch.equal(a, b) for a, b in zip(names, numbers))


def test_streams_that_are_not_there() -> None:
    query, key, value = (rows(S) for _ in range(3))
    assert [x is None for x in normrope.norm_rope_concat(query, None)] == [False, True, True]
    assert [x is None for x in normrope.norm_rope_concat(None, key, value)] == [True, False, False]
    only_keys = normrope.norm_rope_concat(query, key, value, encoder_key=rows(T), encoder_value=rows(T))
    assert [x.shape[2] for x in only_keys] == [S, S + T, S + T]


def test_tables_for_keys() -> None:
    given = arguments(text=False, bias=False)
    own = {"key_rope_cos": torch.randn(S, D), "key_rope_sin": torch.randn(S, D)}
    _, key, _ = normrope.norm_rope_concat(**given, **own, norm="rms_affine", rope="half")
    for name in ("rope_cos", "rope_sin"):
        given[name] = own["key_" + name]
    _, expected, _ = normrope.norm_rope_concat(**given, norm="rms_affine", rope="half")
    assert torch.equal(key, expected)


@pytest.mark.parametrize("empty", ["batch", "text", "image", "all"])
def test_nothing_in_them(empty: str) -> None:
    b, s, t = (
        (0 if empty == "batch" else B),
        (0 if empty in ("image", "all") else S),
        (0 if empty in ("text", "all") else T),
    )
    image, text = (torch.randn(b, n, N, D, requires_grad=True) for n in (s, t))
    weight = parameter(D)
    segments = [Segment(x, norm="rms_affine", weight=weight, **turned("half", s + t, D)) for x in (image, text)]
    (joined,) = normrope.norm_rope(segments)
    assert joined.shape == (b, N, s + t, D)
    joined.sum().backward()
    assert image.grad.shape == image.shape
    assert text.grad.shape == text.shape
    if empty in ("batch", "all"):
        assert torch.equal(weight.grad, torch.zeros(D))
    else:
        (expected,) = reference.norm_rope(converted([s for s in segments if s.x.shape[1]], exact))
        check_rows(joined, expected)


def test_not_a_number_stays_in_its_row() -> None:
    x = rows(S).detach()
    (clean,) = normrope.norm_rope([Segment(x, norm="rms")], layout="BSND")
    x[1, 2, 3, 4] = float("nan")
    (found,) = normrope.norm_rope([Segment(x, norm="rms")], layout="BSND")
    assert found[1, 2, 3].isnan().all()
    found[1, 2, 3] = clean[1, 2, 3]
    assert torch.equal(found, clean)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_the_same_bits_for_any_number_of_threads(threads: int) -> None:
    def run() -> list[torch.Tensor]:
        torch.manual_seed(1)
        x, weight = rows(200), parameter(D)
        (joined,) = normrope.norm_rope([Segment(x, norm="rms_affine", weight=weight)])
        return [joined, *torch.autograd.grad(joined, (x, weight), torch.randn_like(joined))]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run()
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(run(), expected))
    finally:
        torch.set_num_threads(before)
