# SPDX-License-Identifier: Apache-2.0
"""Flags of our own on `vllm serve`. vLLM has no hook for a plugin's flags, so two of its functions are wrapped."""

import argparse
from collections.abc import Callable
from typing import Any

_installed = False


def wrap_cli(add_flags: Callable[[argparse.ArgumentParser], None], apply: Callable[[argparse.Namespace], None]) -> None:
    """Call `add_flags` on the parser before vLLM adds its own, and `apply` on the arguments before it reads them.

    A second call does nothing.
    """
    global _installed
    if _installed:
        return
    _installed = True
    from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs

    add_cli_args = EngineArgs.add_cli_args
    from_cli_args = AsyncEngineArgs.from_cli_args.__func__

    def patched_add_cli_args(parser: Any) -> Any:
        # ### PATCH START cli-flags
        add_flags(parser)
        # ### PATCH END
        return add_cli_args(parser)

    def patched_from_cli_args(cls: type[Any], args: argparse.Namespace) -> Any:
        # ### PATCH START cli-apply
        apply(args)
        # ### PATCH END
        return from_cli_args(cls, args)

    EngineArgs.add_cli_args = staticmethod(patched_add_cli_args)
    AsyncEngineArgs.from_cli_args = classmethod(patched_from_cli_args)


def given_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments whose value is not vLLM's default, by name: what the user set, as far as it has an effect."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    defaults: dict[str, Any] = {"headless": False, "exclude_tools_when_tool_choice_none": False}
    defaults |= vars(AsyncEngineArgs(model=args.model))
    return {
        name: value
        for name, value in vars(args).items()
        if name in defaults and value is not None and str(value) != str(defaults[name])
    }


def runs_on_cpu() -> bool:
    """Whether vLLM's platform is the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())
