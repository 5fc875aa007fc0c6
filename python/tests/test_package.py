"""What is installed: a wheel that carries the library and is bound to no Python and no torch."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import normrope
from normrope import _native

ROOT = Path(__file__).parents[2]
installed = pytest.mark.skipif(
    "NORMROPE_LIBRARY" in os.environ, reason="NORMROPE_LIBRARY is set: not the installed package"
)


def test_version_is_the_headers() -> None:
    header = (ROOT / "include/normrope.h").read_text()
    numbers = [re.search(rf"NR_VERSION_{part} (\d+)", header)[1] for part in ("MAJOR", "MINOR", "PATCH")]
    assert normrope.__version__ == ".".join(numbers)


@installed
def test_wheel() -> None:
    distribution = importlib.metadata.distribution("normrope")
    assert distribution.version == normrope.__version__
    wheel = distribution.read_text("WHEEL")
    assert re.search(r"^Tag: py3-none-(?!any)", wheel, re.MULTILINE), wheel
    files = {str(f) for f in distribution.files}
    assert {"normrope/py.typed", "normrope/lib/libnormrope.so.0", "normrope/bench/__main__.py"} <= files
    assert not any("test" in f or f.endswith((".h", ".a")) for f in files)


@installed
def test_library_is_the_one_that_is_carried() -> None:
    path = Path(_native.LIBRARY._name)
    assert path == Path(normrope.__file__).parent / "lib" / "libnormrope.so.0"
    readelf = shutil.which("readelf")
    assert readelf, "binutils come with every compiler"
    needed = subprocess.run([readelf, "-d", path], check=True, capture_output=True, text=True).stdout
    assert not re.search(r"NEEDED.*(torch|python|c10)", needed)
    assert re.search(r"SONAME.*libnormrope\.so\.0", needed)


def test_everything_public_is_documented() -> None:
    modules = [normrope, normrope.nn, normrope.tables]
    for owner in modules:
        for name in owner.__all__:
            found = getattr(owner, name)
            if not inspect.ismodule(found):
                assert len(inspect.getdoc(found) or "") > 80, name
    parameters = inspect.signature(normrope.norm_rope_concat).parameters
    text = inspect.getdoc(normrope.norm_rope_concat)
    assert all(f"{name}: " in text for name in parameters)


def test_a_library_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="normrope: cannot load its library"):
        _native._load(tmp_path / "none.so")
