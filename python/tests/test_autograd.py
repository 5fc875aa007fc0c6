"""Autograd: gradients against finite differences, what is saved, what is refused, and who may watch."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import normrope
from cases import B, D, N, S, T, arguments, rows
from normrope import Segment

OPTIONS = {"norm": "layer_affine", "rope": "half", "order": "text_first"}


def call(names: list[str], *tensors: Tensor, **options: Any) -> tuple[Tensor, ...]:
    return normrope.norm_rope_concat(**dict(zip(names, tensors)), **(OPTIONS | options))


@pytest.mark.parametrize("norm", ["none", "layer", "layer_affine", "rms", "rms_affine"])
@pytest.mark.parametrize("rope", ["none", "interleaved", "half"])
def test_gradcheck(norm: str, rope: str) -> None:
    given = arguments(torch.float64)
    for name in list(given):
        if (
            (name.endswith("weight") and "affine" not in norm)
            or (name.endswith("bias") and norm != "layer_affine")
            or (name.startswith("rope") and rope == "none")
        ):
            del given[name]
        else:
            given[name] = given[name][:, :2, :2].detach().double() if given[name].dim() == 4 else given[name].double()
            given[name] = given[name].detach().requires_grad_()
    run = partial(call, list(given), norm=norm, rope=rope)
    assert torch.autograd.gradcheck(run, tuple(given.values()))


@pytest.mark.parametrize("scope", ["head", "all_heads"])
def test_gradcheck_of_the_general_form(scope: str) -> None:
    packed = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    tables = [torch.randn(2, 4, 1, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def run(packed: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        return normrope.norm_rope(
            [
                Segment(packed, "a", (0, 2), "rms_affine", weight, scope=scope, rope=2, cos=cos, sin=sin),
                Segment(packed, "b", (3, 2), "rms_affine", weight, scope=scope, rope=4, cos=sin, sin=cos),
                Segment(packed, "b", (0, 2), "layer", rope="half", cos=cos, sin=sin, rope_position=-1),
            ]
        )

    assert torch.autograd.gradcheck(run, (packed, weight, *tables))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    given = arguments(dtype)
    _, positions, eps, spec = normrope.functional._concat_call((), {**given, **OPTIONS})[0]
    tensors = list(given.values())
    torch.library.opcheck(torch.ops.normrope.forward.default, (tensors, positions, eps, spec, True))
    detached = [t.detach() for t in tensors]
    *outputs, statistics = torch.ops.normrope.forward(detached, positions, eps, spec, True)
    torch.library.opcheck(torch.ops.normrope.forward.default, (detached, positions, eps, spec, False))
    wanted = [t.requires_grad for t in tensors]
    sizes = [extent for t in tensors if t.dim() == 4 for extent in t.shape]
    rest = (sizes, positions, spec, [True] * 3, [True] * len(tensors), wanted)
    torch.library.opcheck(
        torch.ops.normrope.backward.default,
        ([torch.randn_like(t) for t in outputs], detached, statistics, *rest),
    )


def test_schemas_have_no_defaults() -> None:
    for operator in (torch.ops.normrope.forward.default, torch.ops.normrope.backward.default):
        assert not any(argument.has_default_value() for argument in operator._schema.arguments)


def test_only_inputs_mean_and_rstd_are_saved() -> None:
    given = arguments(torch.bfloat16)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        outputs = call(list(given), *given.values())
    inputs = {t.data_ptr(): name for name, t in given.items()}
    others = [t for t in saved if t.data_ptr() not in inputs]
    assert [(t.dtype, t.numel()) for t in others] == [(torch.float32, 2 * 2 * B * (S + T) * N)]
    names = {inputs[t.data_ptr()] for t in saved if t.data_ptr() in inputs}
    assert not names & {"value", "encoder_value"}, "nothing of a value is needed"
    assert not {o.data_ptr() for o in outputs} & {t.data_ptr() for t in saved}


def test_nothing_is_kept_without_gradients() -> None:
    given = arguments()
    with torch.no_grad():
        outputs = call(list(given), *given.values())
    assert all(o.grad_fn is None for o in outputs)
    detached = {name: t.detach() for name, t in given.items()}
    assert not any(o.requires_grad for o in call(list(given), *detached.values()))


@pytest.mark.parametrize(
    "wanted", ["query", "value", "norm_key_weight", "norm_added_query_bias", "encoder_key", "rope_cos"]
)
def test_one_gradient_alone(wanted: str) -> None:
    given = arguments()
    given["rope_cos"].requires_grad_()
    outputs = call(list(given), *given.values())
    incoming = [torch.randn_like(o) for o in outputs]
    (expected,) = torch.autograd.grad(outputs, (given[wanted],), incoming)
    alone = {name: t.detach().requires_grad_(name == wanted) for name, t in given.items()}
    outputs = call(list(alone), *alone.values())
    reached = {"query": "q", "value": "v", "norm_key_weight": "k", "norm_added_query_bias": "q", "encoder_key": "k"}
    assert "".join(n for n, o in zip("qkv", outputs) if o.requires_grad) == reached.get(wanted, "qk")
    live = [(o, g) for o, g in zip(outputs, incoming) if o.requires_grad]
    (found,) = torch.autograd.grad([o for o, _ in live], (alone[wanted],), [g for _, g in live])
    assert torch.equal(found, expected)


def test_an_output_that_nobody_used() -> None:
    given = arguments()
    query, _, _ = call(list(given), *given.values())
    gradients = dict(
        zip(given, torch.autograd.grad(query.sum(), [t for t in given.values() if t.requires_grad], allow_unused=True))
    )
    assert gradients["query"].abs().sum() > 0
    assert gradients["norm_added_query_weight"].abs().sum() > 0
    assert all(gradients[name] is None for name in gradients if "key" in name or "value" in name)


def test_incoming_gradients_of_any_strides() -> None:
    given = arguments()
    tensors = [t for t in given.values() if t.requires_grad]
    outputs = call(list(given), *given.values())
    incoming = [torch.randn(D, S + T, N, B).permute(3, 2, 1, 0), torch.randn(N, 1, D).expand(B, N, S + T, D), None]
    kept = [(o, g) for o, g in zip(outputs, incoming) if g is not None]
    joined = [o for o, _ in kept]
    options = {"retain_graph": True, "allow_unused": True}
    found = torch.autograd.grad(joined, tensors, [g for _, g in kept], **options)
    expected = torch.autograd.grad(joined, tensors, [g.contiguous() for _, g in kept], **options)
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(found, expected))


def test_slices_are_read_where_they_are() -> None:
    """Slices of a packed projection: the same bits as copies, and no copy among what is saved."""
    packed = torch.randn(B, S, 3, N, D, requires_grad=True)
    weight = torch.randn(D)
    options = {"norm": "rms_affine", "norm_query_weight": weight, "norm_key_weight": weight}
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        outputs = normrope.norm_rope_concat(*packed.unbind(2), **options)
    storage = packed.untyped_storage().data_ptr()
    assert sum(t.untyped_storage().data_ptr() == storage for t in saved) == 2
    copies = [x.detach().clone().requires_grad_() for x in packed.unbind(2)]
    expected = normrope.norm_rope_concat(*copies, **options)
    incoming = [torch.randn_like(o) for o in outputs]
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected))
    (gradient,) = torch.autograd.grad(outputs, (packed,), incoming)
    parts = torch.autograd.grad(expected, copies, incoming)
    assert torch.equal(gradient, torch.stack(parts, 2))


@pytest.mark.parametrize("view", ["transposed", "reversed heads", "expanded", "every second row"])
def test_other_strides(view: str) -> None:
    base = torch.randn(B, 2 * S, N, D)
    x = {
        "transposed": lambda: torch.randn(B, S, D, N).transpose(2, 3),
        "reversed heads": lambda: base[:, :S].flip(2),
        "expanded": lambda: torch.randn(1, S, 1, D).expand(B, S, N, D),
        "every second row": lambda: base[:, ::2],
    }[view]()
    (found,) = normrope.norm_rope([Segment(x, norm="layer")])
    (expected,) = normrope.norm_rope([Segment(x.contiguous(), norm="layer")])
    assert torch.equal(found, expected)


def test_gradients_of_parameters_that_are_expanded() -> None:
    x = rows(S)
    one = torch.randn(1, D, requires_grad=True)
    table = torch.randn(1, S, 1, D, requires_grad=True)
    incoming = torch.randn(B, N, S, D)

    def run(weight: Tensor, cos: Tensor) -> list[Tensor]:
        (joined,) = normrope.norm_rope([Segment(x, norm="rms_affine", weight=weight, rope=2, cos=cos, sin=cos)])
        return list(torch.autograd.grad(joined, (one, table), incoming))

    expanded = run(one.expand(N, D), table.expand(B, S, N, D))
    materialised = run(one.expand(N, D).contiguous(), table.expand(B, S, N, D).contiguous())
    assert all(torch.equal(a, b) for a, b in zip(expanded, materialised))


def test_a_gradient_of_a_gradient_is_refused() -> None:
    given = arguments()
    (query, _, _) = call(list(given), *given.values())
    (gradient,) = torch.autograd.grad(query.square().sum(), (given["query"],), create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        gradient.sum().backward()


def test_the_operators_refuse_it_too() -> None:
    given = arguments()
    tensors, positions, eps, spec = normrope.functional._concat_call((), {**given, **OPTIONS})[0]
    query = torch.ops.normrope.forward(tensors, positions, eps, spec, True)[0]

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            return function(*args, **(kwargs or {}))

    with Watching():
        (gradient,) = torch.autograd.grad(query.square().sum(), (given["query"],), create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        gradient.sum().backward()


def test_the_operators_give_the_same_bits() -> None:
    given = arguments(torch.bfloat16)
    tensors, positions, eps, spec = normrope.functional._concat_call((), {**given, **OPTIONS})[0]
    wanted = [t for t in tensors if t.requires_grad]
    direct = call(list(given), *given.values())
    through = torch.ops.normrope.forward(tensors, positions, eps, spec, True)[:3]
    incoming = [torch.randn_like(o) for o in direct]
    assert all(torch.equal(a, b) for a, b in zip(direct, through))
    pairs = zip(torch.autograd.grad(direct, wanted, incoming), torch.autograd.grad(through, wanted, incoming))
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs)


def test_statistics_must_be_kept_for_a_gradient() -> None:
    given = arguments()
    tensors, positions, eps, spec = normrope.functional._concat_call((), {**given, **OPTIONS})[0]
    query = torch.ops.normrope.forward(tensors, positions, eps, spec, False)[0]
    with pytest.raises(RuntimeError, match="statistics is False, expected True"):
        query.sum().backward()


def test_inputs_changed_before_the_backward() -> None:
    given = arguments()
    scaled = given["query"] * 1
    query, _, _ = normrope.norm_rope_concat(scaled, given["key"], norm="rms")
    with torch.no_grad():
        scaled.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        query.sum().backward()


def test_checkpointing_and_offloading() -> None:
    given = arguments()
    tensors = [t for t in given.values() if t.requires_grad]
    incoming = torch.randn(B, N, S + T, D)
    run = partial(call, list(given))
    expected = torch.autograd.grad(run(*given.values())[0], tensors, incoming, allow_unused=True)
    again = torch.autograd.grad(
        checkpoint(run, *given.values(), use_reentrant=False)[0], tensors, incoming, allow_unused=True
    )
    with torch.autograd.graph.save_on_cpu():
        offloaded = torch.autograd.grad(run(*given.values())[0], tensors, incoming, allow_unused=True)
    for a, b, c in zip(expected, again, offloaded):
        assert (a is None and b is None and c is None) or (torch.equal(a, b) and torch.equal(a, c))


def test_func_grad() -> None:
    given = arguments()
    names = list(given)

    def loss(query: Tensor) -> Tensor:
        return call(names, query, *list(given.values())[1:])[0].square().sum()

    found = torch.func.grad(loss)(given["query"].detach())
    (expected,) = torch.autograd.grad(loss(given["query"]), (given["query"],))
    assert torch.equal(found, expected)


def test_func_grad_beside_wrapped_tensors() -> None:
    """A tensor that a transform has wrapped, and that wants no gradient."""
    x, weight = torch.randn(B, S, N, D), torch.randn(D)

    def loss(weight: Tensor) -> Tensor:
        stopped = (x * weight).detach()
        return normrope.norm_rope_concat(stopped, stopped, norm="rms")[0].sum() * weight.sum()

    expected = normrope.norm_rope_concat(x * weight, None, norm="rms")[0].sum().expand(D)
    torch.testing.assert_close(torch.func.grad(loss)(weight), expected)


def rms(x: Tensor) -> Tensor:
    return normrope.norm_rope_concat(x, None, norm="rms")[0]


@pytest.mark.parametrize(
    "batched",
    [
        lambda x: torch.func.vmap(rms)(x[None]),
        lambda x: torch.func.vmap(lambda w: normrope.norm_rope([Segment(x, norm="rms_affine", weight=w)]))(x[0, 0]),
        lambda x: torch.func.vmap(torch.func.grad(lambda x: rms(x).sum()))(x[None]),
        lambda x: torch.func.jacrev(rms)(x),
        lambda x: torch.func.hessian(lambda x: rms(x).sum())(x),
        lambda x: torch.autograd.functional.jacobian(rms, x, vectorize=True),
    ],
)
@pytest.mark.parametrize("gradient", [False, True])
def test_vmap_is_refused(batched: Any, gradient: bool) -> None:
    with pytest.raises(NotImplementedError, match=r"torch\.func"):
        batched(torch.randn(1, 1, 1, 4, requires_grad=gradient))


@pytest.mark.parametrize("gradient", [False, True])
def test_forward_mode_is_refused(gradient: bool) -> None:
    """In silence the tangent would be lost."""
    x, weight = torch.randn(1, 2, 3, 4, requires_grad=gradient), torch.randn(4)
    for transform in (lambda x: torch.func.jvp(rms, (x,), (x,)), torch.func.jacfwd(rms)):
        with pytest.raises(NotImplementedError, match="query: has a tangent of forward-mode AD"):
            transform(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight, weight)
        with pytest.raises(NotImplementedError, match="norm_query_weight: has a tangent of forward-mode AD"):
            normrope.norm_rope_concat(x, None, norm_query_weight=dual, norm="rms_affine")
        inside = rms(x)
    assert torch.equal(inside, rms(x))


@pytest.mark.parametrize("way", ["autograd", "operators"])
@pytest.mark.parametrize("again", [False, True])
def test_tangents_of_incoming_gradients_are_refused(way: str, again: bool) -> None:
    """By the number of the output that has one."""
    x = torch.randn(1, 2, 3, 4, requires_grad=True)
    if way == "autograd":
        outputs = normrope.norm_rope([Segment(x, i, norm="rms") for i in range(3)])
    else:
        outputs = torch.ops.normrope.forward(
            *normrope.functional._segments([Segment(x, i) for i in range(3)], "BNSD"), True
        )
    outputs = [outputs[0], outputs[2]]

    def pulled(last: Tensor) -> Tensor:
        gradients = [torch.ones_like(last), last]
        return torch.autograd.grad(outputs, x, gradients, create_graph=again, retain_graph=True)[0]

    ones = torch.ones(1, 3, 2, 4)
    expected = pulled(ones)
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(pulled(ones), expected)
        with pytest.raises(NotImplementedError, match="gradient of output 2: has a tangent of forward-mode AD"):
            pulled(torch.autograd.forward_ad.make_dual(ones, ones))


def test_lazy_negations() -> None:
    """Tensors whose memory holds the negated values, as of a conjugate's imaginary part."""

    def negative(*shape: int) -> Tensor:
        made = torch.randn(*shape, dtype=torch.complex64).conj().imag
        assert made.is_neg()
        return made

    x, table, incoming = negative(B, S, N, D), negative(S, D), negative(B, N, S, D)
    for gradient in (False, True):
        tensors = [t.detach().requires_grad_(gradient) for t in (x, table)]
        plain = [t.resolve_neg().detach().requires_grad_(gradient) for t in (x, table)]
        found, expected = (
            normrope.norm_rope_concat(x, None, rope="half", rope_cos=t, rope_sin=t, norm="rms")[0]
            for x, t in (tensors, plain)
        )
        assert torch.equal(found, expected)
    found = torch.autograd.grad(found, tensors, incoming)
    expected = torch.autograd.grad(expected, plain, incoming.resolve_neg())
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    leaf = torch.randn(B, S, N, D, requires_grad=True)
    rms(leaf).backward(incoming)
    assert torch.equal(leaf.grad, torch.autograd.grad(rms(leaf), leaf, incoming.resolve_neg())[0])


def test_sparse_gradients_are_refused() -> None:
    x = torch.randn(B, S, N, D, requires_grad=True)
    joined = rms(x)
    with pytest.raises(TypeError, match=r"gradient of output 0: a tensor that is torch\.sparse_coo"):
        joined.backward(torch.ones_like(joined).to_sparse())


def test_autocast_leaves_tables_alone() -> None:
    given = arguments(torch.bfloat16)
    expected = call(list(given), *given.values())
    with torch.autocast("cpu", torch.bfloat16):
        found = call(list(given), *given.values())
    assert all(a.dtype == torch.bfloat16 and torch.equal(a, b) for a, b in zip(found, expected))
    given["rope_cos"] = given["rope_cos"].bfloat16()
    assert not torch.equal(call(list(given), *given.values())[0], expected[0]), "tables' last bits are used"


def test_many_threads_at_once() -> None:
    """Plans are shared between threads; one plan runs in all of them."""
    given = arguments()
    expected = call(list(given), *given.values())
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            outputs = call(list(given), *given.values())
            torch.autograd.grad(outputs[0].sum(), (given["query"],))
            if not all(torch.equal(a, b) for a, b in zip(outputs, expected)):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_plans_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    from normrope import _problem, _torch

    cache = _problem.Cache(3)
    monkeypatch.setattr(_torch, "PLANS", cache)
    for length in (1, 2, 3, 4, 5, 1, 2):
        x = torch.randn(1, length, 2, 4)
        (found,) = normrope.norm_rope([Segment(x)])
        assert torch.equal(found, x.transpose(1, 2))
    assert len(cache.plans) == 3


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_as_many_threads_as_torch(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from normrope import _native, _problem, _torch

    told: list[int] = []

    class Plan(_native.Plan):
        def __init__(self, direction: int, backend: int, segments: Any, threads: int, borrowed: Any) -> None:
            told.append(threads)
            super().__init__(direction, backend, segments, threads, borrowed)

    monkeypatch.setattr(_native, "Plan", Plan)
    monkeypatch.setattr(_torch, "PLANS", _problem.Cache(8))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        (joined,) = normrope.norm_rope([Segment(rows(S), norm="rms")])
        joined.sum().backward()
    finally:
        torch.set_num_threads(before)
    assert told == [threads, threads]


def test_runs_at_once_have_descriptors_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that begins while another one is in the library does not write where that one reads."""
    from normrope import _native, _problem, _torch

    monkeypatch.setattr(_torch, "PLANS", _problem.Cache(8))
    normrope.norm_rope([Segment(rows(S))])
    (prepared,) = _torch.PLANS.plans.values()
    addresses = [64, 128, 192]
    busy: list[int] = []
    most: list[int] = []

    class Library:
        @staticmethod
        def nr_plan_run(handle: Any, segments: int, *rest: Any) -> int:
            assert segments not in busy
            busy.append(segments)
            most.append(len(busy))
            if len(most) < 8:
                prepared.run(addresses, None)
                prepared.run(addresses, None)
            busy.remove(segments)
            return 0

        nr_plan_destroy = _native.LIBRARY.nr_plan_destroy

    monkeypatch.setattr(_native, "LIBRARY", Library)
    prepared.run(addresses, None)
    assert max(most) >= 3
