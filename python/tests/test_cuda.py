"""CUDA tensors, also where there is no device: what the library would be given, by tensors and plans that pretend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import normrope
from normrope import Segment, _native, _problem, _torch

needs_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class OnDevice(torch.Tensor):
    """A tensor that says that it is on cuda:1."""

    device = torch.device("cuda", 1)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Everything that plans were made with and run with, by a library that does nothing."""
    seen: list[dict[str, Any]] = []
    current: list[torch.device] = []

    class Plan:
        workspace_size = 24

        def __init__(self, direction: int, backend: int, segments: list, threads: int, borrowed: list) -> None:
            seen.append({"direction": direction, "backend": backend, "threads": threads, "device": current[-1]})

        def run(self, words: Any, addresses: list[int], workspace: int, stream: int) -> None:
            seen.append({"stream": stream, "workspace": workspace, "device": current[-1]})

    @contextlib.contextmanager
    def device(which: torch.device) -> Iterator[None]:
        current.append(which)
        yield
        current.pop()

    class Stream:
        cuda_stream = 4711

    allocate = torch.empty_strided, torch.empty
    on_cpu = [lambda *a, f=f, **k: f(*a, **{**k, "device": "cpu"}) for f in allocate]
    monkeypatch.setattr(_native, "Plan", Plan)
    monkeypatch.setattr(_torch, "PLANS", _problem.Cache(8))
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream)
    monkeypatch.setattr(torch, "empty_strided", on_cpu[0])
    monkeypatch.setattr(torch, "empty", on_cpu[1])
    monkeypatch.setattr(_torch, "_PLAIN", (torch.Tensor, torch.nn.Parameter, OnDevice))
    return seen


def test_backend_stream_and_device(launches: list[dict[str, Any]]) -> None:
    x = torch.randn(1, 3, 2, 4).as_subclass(OnDevice)
    for _ in range(2):
        (joined,) = normrope.norm_rope([Segment(x, norm="rms")])
        assert joined.shape == (1, 2, 3, 4)
    device = torch.device("cuda", 1)
    made, *runs = launches
    assert made == {"direction": 0, "backend": 3, "threads": 0, "device": device}
    assert [(r["stream"], r["device"]) for r in runs] == [(4711, device)] * 2
    assert all(r["workspace"] for r in runs)


def test_float64_is_refused(launches: list[dict[str, Any]]) -> None:
    x = torch.randn(1, 3, 2, 4, dtype=torch.float64).as_subclass(OnDevice)
    with pytest.raises(NotImplementedError, match="float64, expected another dtype, or tensors on the CPU"):
        normrope.norm_rope([Segment(x)])
    assert not launches


def test_a_library_without_the_backend() -> None:
    """The library's own answer, of whichever kind the machine has."""
    segment = _native.Segment(struct_size=_native.ctypes.sizeof(_native.Segment), batch=0, dim=2)
    try:
        _native.Plan(_native.FORWARD, _native.BACKEND_CUDA, [segment], 0, [])
    except NotImplementedError as error:
        assert "CUDA" in str(error)  # noqa: PT017  which of the two happens is the machine's choice
    except RuntimeError as error:
        assert str(error)  # noqa: PT017


@needs_device
def test_on_a_device() -> None:
    given = torch.randn(2, 7, 4, 16, requires_grad=True)
    weight = torch.randn(16, requires_grad=True)
    results = []
    for device in ("cpu", "cuda"):
        x, w = (t.detach().to(device).requires_grad_() for t in (given, weight))
        (joined,) = normrope.norm_rope([Segment(x, norm="rms_affine", weight=w)])
        joined.square().sum().backward()
        results.append([t.detach().cpu() for t in (joined, x.grad, w.grad)])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
