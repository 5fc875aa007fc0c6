"""`group=`: weight gradients as sums over the ranks of a process group, with gloo.

Each number of ranks runs once, in processes of its own; every rank computes its part of one problem, split by heads or
by sequence, and hands back what it got. The tests compare that with the problem computed whole.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import normrope.diffusers
import zoo

RANKS = [2, 4]
BATCH, LENGTH, TEXT, HEADS, DIM = 2, 24, 8, 8, 16
WEIGHTS = [f"norm_{stream}{x}_{p}" for stream in ("", "added_") for x in ("query", "key") for p in ("weight", "bias")]
PROJECTIONS = [stream + x for stream in ("", "encoder_") for x in ("query", "key", "value")]


def problem(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Projections, weights, tables and the gradients that come in, [B, S, N, D]; the same in every process."""
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    made = {x: noise(BATCH, TEXT if "encoder" in x else LENGTH, HEADS, DIM) for x in PROJECTIONS}
    made |= {w: noise(DIM) for w in WEIGHTS}
    made |= {f"grad_{x}": noise(BATCH, LENGTH + TEXT, HEADS, DIM) for x in ("query", "key", "value")}
    angles = torch.rand(LENGTH + TEXT, DIM // 2, generator=generator)
    made["rope_cos"], made["rope_sin"] = (f(angles).repeat_interleave(2, 1) for f in (torch.cos, torch.sin))
    return made


def part(problem: dict[str, torch.Tensor], split: str, rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """A rank's part: some heads of all positions, or some positions of both streams with their rows of the tables."""
    cut = dict(problem)
    if split == "heads":
        for name in (*PROJECTIONS, "grad_query", "grad_key", "grad_value"):
            cut[name] = problem[name].chunk(ranks, dim=2)[rank]
        return cut
    for name in PROJECTIONS:
        cut[name] = problem[name].chunk(ranks, dim=1)[rank]
    for name, axis in (("grad_query", 1), ("grad_key", 1), ("grad_value", 1), ("rope_cos", 0), ("rope_sin", 0)):
        image, text = problem[name].split([LENGTH, TEXT], dim=axis)
        cut[name] = torch.cat([image.chunk(ranks, axis)[rank], text.chunk(ranks, axis)[rank]], axis)
    return cut


def compute(problem: dict[str, torch.Tensor], group: Any = None, wrap: Any = lambda f: f) -> dict[str, torch.Tensor]:
    """Gradients of projections and weights of a problem, or of a part of it."""
    leaves = {name: problem[name].clone().requires_grad_() for name in (*PROJECTIONS, *WEIGHTS)}
    step = wrap(normrope.norm_rope_concat)
    tables = {name: problem[name] for name in ("rope_cos", "rope_sin")}
    joined = step(**leaves, **tables, norm="layer_affine", rope="interleaved", layout="BSND", group=group)
    torch.autograd.backward(joined, [problem[f"grad_{x}"] for x in ("query", "key", "value")])
    return {name: leaf.grad for name, leaf in leaves.items()}


CASES = {
    f"{split} {dtype}".replace("torch.", ""): (split, dtype)
    for split in ("heads", "sequence")
    for dtype in (torch.float32, torch.bfloat16)
}


def model(group: Any = None) -> dict[str, torch.Tensor]:
    """Gradients of a model's norms: patched with the group, of a rank's part of the batch; without one, of it all."""
    made, inputs = zoo.make("flux")
    inputs = zoo.to(inputs, torch.float32)
    if group is not None:
        normrope.diffusers.patch(made, group=group)
        rank, ranks = dist.get_rank(group), dist.get_world_size(group)
        inputs = {k: v if k.endswith("ids") else v.chunk(ranks)[rank] for k, v in inputs.items()}
    made.float()(**inputs).sample.square().sum().backward()
    return {name: p.grad for name, p in made.named_parameters() if "attn.norm_" in name}


def split_by_diffusers() -> dict[str, torch.Tensor]:
    """Outputs of a model whole, and with each rank holding a part of its sequence, as diffusers has it and patched."""
    torch.accelerator.device_count = lambda: 1  # it counts devices to choose one; there is the CPU
    zoo.HEADS, zoo.TEXT = 4, 6  # which two ranks can share
    made, inputs = zoo.make("flux")
    made.float()
    inputs = zoo.to(inputs, torch.float32)
    with torch.no_grad():
        found = {"whole": made(**inputs, return_dict=False)[0]}
        made.enable_parallelism(config=diffusers.ContextParallelConfig(ulysses_degree=2))
        found["unpatched"] = made(**inputs, return_dict=False)[0]
        normrope.diffusers.patch(made)
        found["patched"] = made(**inputs, return_dict=False)[0]
    return found


def learned(split: str, group: Any = None) -> torch.Tensor:
    """Gradient of the angles that tables are made of, summed over the group; without one, of the problem whole."""
    angles = (torch.arange((LENGTH + TEXT) * DIM // 2).view(-1, DIM // 2) % 7 / 3).requires_grad_()
    summed = angles if group is None else normrope.distributed.sum_gradients(group, angles)[0]
    tables = [f(summed).repeat_interleave(2, 1) for f in (torch.cos, torch.sin)]
    given = problem(torch.float32) | dict(zip(("rope_cos", "rope_sin"), tables))
    if group is not None:
        given = part(given, split, dist.get_rank(group), dist.get_world_size(group))
    streams = [given[name] for name in PROJECTIONS]
    rope = {"rope": "interleaved", "rope_cos": given["rope_cos"], "rope_sin": given["rope_sin"]}
    joined = normrope.norm_rope_concat(*streams, **rope, norm="rms", layout="BSND", group=group)
    torch.autograd.backward(joined[:2], [given["grad_query"], given["grad_key"]])
    return angles.grad


def rank_main(rank: int, ranks: int, folder: str) -> None:
    """What each process does: every case, and the errors that take more than one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    found = {
        name: compute(part(problem(dtype), split, rank, ranks), dist.group.WORLD)
        for name, (split, dtype) in CASES.items()
    }
    turned = ranks - 1 - rank
    found["turned"] = compute(part(problem(torch.float32), "heads", turned, ranks), dist.group.WORLD)
    half = dist.new_group(list(range(ranks // 2)))
    if rank < ranks // 2:
        found["half"] = compute(part(problem(torch.float32), "heads", rank, ranks // 2), half)
    else:
        with pytest.raises(TypeError, match=r"group: .* expected a group that this process is a member of"):
            compute(part(problem(torch.float32), "heads", 0, ranks), half)
    with pytest.raises(TypeError, match="expected None beside a weight that is a ndarray"):
        normrope.norm_rope([normrope.Segment(np.ones((1, 2, 1, 4)), weight=np.ones(4))], group=dist.group.WORLD)
    found["module"] = module(part(problem(torch.float32), "sequence", rank, ranks), dist.group.WORLD)
    found["learned"] = {split: learned(split, dist.group.WORLD) for split in ("heads", "sequence")}
    if ranks == 2:  # what takes long
        wrap = partial(torch.compile, fullgraph=True, backend="aot_eager")
        found["compiled"] = compute(part(problem(torch.bfloat16), "sequence", rank, ranks), dist.group.WORLD, wrap)
        found["model"] = model(dist.group.WORLD)
        found["split"] = split_by_diffusers()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def module(problem: dict[str, torch.Tensor], group: Any = None) -> dict[str, torch.Tensor]:
    """Weight gradients of the module, whose streams share their weights; a query weight wants none."""
    step = normrope.nn.NormRopeConcat(DIM, shared=True, layout="BSND")
    step.norm_query_weight.requires_grad_(False)
    tables = {name: problem[name] for name in ("rope_cos", "rope_sin")}
    joined = step(*[problem[name] for name in PROJECTIONS], **tables, group=group)
    torch.autograd.backward(joined[1], problem["grad_key"])
    return {name: parameter.grad for name, parameter in step.named_parameters()}


@pytest.fixture(scope="module", params=RANKS)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each rank found."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    mp.spawn(rank_main, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("case", CASES)
def test_weight_gradients_are_those_of_the_whole(ranks: list[dict], case: str) -> None:
    """Of float32 shares, rounded once: half an ulp, and roundings of the sum of magnitudes (docs/numerics.md).

    There are 4 of these within a rank and one for each rank; a term is about 1, so the magnitudes' sum is at most about
    the number of rows.
    """
    _, dtype = CASES[case]
    exact = compute({name: tensor.double() for name, tensor in problem(dtype).items()})
    for name in WEIGHTS:
        rows = BATCH * HEADS * (TEXT if "added" in name else LENGTH)
        bound = torch.finfo(dtype).eps / 2 * exact[name].abs() + (4 + len(ranks)) * 2**-24 * rows
        found = ranks[0][case][name]
        assert found.dtype == dtype
        assert ((found.double() - exact[name]).abs() <= bound).all(), name
        share = compute(part(problem(dtype), CASES[case][0], 0, len(ranks)))[name]
        assert ((share.double() - exact[name]).abs() > 100 * bound).any(), f"{name}: the bound would let a share pass"


@pytest.mark.parametrize("case", [*CASES, "turned", "module"])
def test_ranks_have_the_same_bits(ranks: list[dict], case: str) -> None:
    """Or their weights would drift apart."""
    for name in ranks[0][case]:
        if name not in PROJECTIONS and ranks[0][case][name] is not None:
            assert all(torch.equal(ranks[0][case][name], other[case][name]) for other in ranks[1:]), name


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_rows_have_the_bits_of_the_whole(ranks: list[dict], case: str) -> None:
    """Nothing of a row depends on who computed it."""
    split, dtype = CASES[case]
    whole = compute(problem(dtype))
    for name in PROJECTIONS:
        joined = torch.cat([found[case][name] for found in ranks], dim=2 if split == "heads" else 1)
        assert torch.equal(joined, whole[name]), name


def test_who_computed_what_does_not_matter_to_two(ranks: list[dict]) -> None:
    """One addition has no order; more have the all-reduce's, and then only roundings differ."""
    for name in WEIGHTS:
        found, turned = ranks[0]["heads float32"][name], ranks[0]["turned"][name]
        if len(ranks) == 2:
            assert torch.equal(found, turned), name
        else:
            torch.testing.assert_close(found, turned, rtol=1e-5, atol=1e-4)


def test_other_ranks_take_no_part(ranks: list[dict]) -> None:
    """A group of half the ranks sums over these."""
    whole = compute(problem(torch.float32))
    for found in ranks[: len(ranks) // 2]:
        for name in WEIGHTS:
            torch.testing.assert_close(found["half"][name], whole[name], rtol=1e-5, atol=1e-4)
    assert not any("half" in found for found in ranks[len(ranks) // 2 :])


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_compiled_as_eager(ranks: list[dict]) -> None:
    """The same bits from one graph, the all-reduce in it."""
    for found in ranks:
        for name, gradient in found["sequence bfloat16"].items():
            assert torch.equal(found["compiled"][name], gradient), name


def test_module(ranks: list[dict]) -> None:
    """Weights that streams share are summed over both; those that want no gradient are left alone."""
    whole = module(problem(torch.float32))
    found = ranks[0]["module"]
    assert found["norm_query_weight"] is None
    torch.testing.assert_close(found["norm_key_weight"], whole["norm_key_weight"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("split", ["heads", "sequence"])
def test_learned_tables(ranks: list[dict], split: str) -> None:
    """`group` leaves tables alone; `sum_gradients` sums what they are made of, whichever rows a rank takes of them."""
    whole = learned(split)
    for found in ranks:
        torch.testing.assert_close(found["learned"][split], whole, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_model(ranks: list[dict]) -> None:
    """`normrope.diffusers.patch(model, group=...)`, with a part of the batch on each rank."""
    whole = model()
    assert len(whole) == 6
    for name, gradient in whole.items():
        torch.testing.assert_close(ranks[0]["model"][name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max())
        assert torch.equal(ranks[0]["model"][name], ranks[1]["model"][name]), name


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_context_parallelism(ranks: list[dict]) -> None:
    """A patched model goes on working on a part of the sequence, and hands attention what it exchanges."""
    for found in ranks:
        for name in ("unpatched", "patched"):
            torch.testing.assert_close(found["split"][name], found["split"]["whole"], rtol=1e-4, atol=1e-4)


def test_group_must_be_one() -> None:
    """What else is refused by name."""
    with pytest.raises(TypeError, match=r"group: found 'world', expected a torch\.distributed\.ProcessGroup"):
        compute(problem(torch.float32), "world")
