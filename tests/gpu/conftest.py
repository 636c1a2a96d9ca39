# SPDX-License-Identifier: Apache-2.0
"""These tests need a CUDA device, and what they use of CuPy and NIXL."""

import importlib.util

import pytest

torch = pytest.importorskip("torch")


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/gpu/" in item.nodeid:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _needs(request):
    """Skip where there is no device, or where a module named by `needs` is not installed."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    for name in getattr(request.module, "NEEDS", ()):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
