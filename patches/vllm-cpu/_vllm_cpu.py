# SPDX-License-Identifier: Apache-2.0
"""Two repairs that the CPU build needs before any plugin of vLLM's is loaded, each when its module is imported.

The `.pth` file beside this module imports it when the interpreter starts, so it loads nothing itself.

`torchvision.extension` is where torchvision tries to load its operators. Where that failed, the two schemas are
declared that the rest of torchvision registers fake kernels for. Its pure-Python transforms then work, and the
operators themselves still raise when called.

`vllm.model_executor.models.minicpmv` asks on every image whether a CUDA stream is being captured, which raises on a
torch without CUDA. There the answer is no.
"""

import sys

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_missing(extension):
    if extension._has_ops():
        return
    import torch.library

    for name in _OPERATORS:
        torch.library.define(f"torchvision::{name}", _SCHEMA)


def _never_capturing(model):
    import torch

    if not torch.backends.cuda.is_built():
        torch.cuda.is_current_stream_capturing = lambda: False


_REPAIRS = {
    "torchvision.extension": _declare_missing,
    "vllm.model_executor.models.minicpmv": _never_capturing,
}


class _Finder:
    """Finds a module as usual, and repairs once that module has run."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        repair = _REPAIRS.get(fullname)
        if repair is None:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            _run_after(spec.loader, repair)
        return spec


def _run_after(loader, action):
    exec_module = loader.exec_module

    def exec_then_act(module):
        exec_module(module)
        action(module)

    loader.exec_module = exec_then_act


sys.meta_path.insert(0, _Finder)
