# SPDX-License-Identifier: Apache-2.0
"""Let a torchvision whose compiled operators cannot load be imported all the same.

The `.pth` file beside this module imports it when the interpreter starts, so it loads nothing itself. It
waits for `torchvision.extension`, the module in which torchvision tries to load its operators, and where that
failed declares the two schemas that the rest of torchvision registers fake kernels for. Nothing else of
torchvision is changed: its pure-Python transforms work, and the operators themselves still raise when called.
"""

import sys

_TARGET = "torchvision.extension"
_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_missing(extension):
    if extension._has_ops():
        return
    import torch.library

    for name in _OPERATORS:
        torch.library.define(f"torchvision::{name}", _SCHEMA)


class _TorchvisionFinder:
    """Finds one module as usual, and has the schemas declared once that module has run."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname != _TARGET:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            _run_after(spec.loader, _declare_missing)
        return spec


def _run_after(loader, action):
    exec_module = loader.exec_module

    def exec_then_act(module):
        exec_module(module)
        action(module)

    loader.exec_module = exec_then_act


sys.meta_path.insert(0, _TorchvisionFinder)
