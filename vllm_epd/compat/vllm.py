# SPDX-License-Identifier: Apache-2.0
"""The one place that says which vLLM this package is written for."""

import logging

from vllm_epd.errors import PluginError

logger = logging.getLogger(__name__)

TARGET_VLLM = "0.32.0"


def check_version() -> None:
    """Refuse another minor version of vLLM, whose internals may differ; warn at another patch version.

    Raises:
        PluginError: the installed vLLM is of another line.
    """
    import vllm

    installed = vllm.__version__.split("+")[0]
    if installed.split(".")[:2] != TARGET_VLLM.split(".")[:2]:
        raise PluginError(
            f"vllm-epd is written for vLLM {TARGET_VLLM}, found {vllm.__version__};"
            f" install vllm=={TARGET_VLLM} or uninstall vllm-epd"
        )
    if installed != TARGET_VLLM:
        logger.warning("vllm-epd is tested with vLLM %s, found %s", TARGET_VLLM, vllm.__version__)


def share_logging() -> None:
    """Send our log records where vLLM sends its own; a second call does nothing."""
    import vllm.logger  # noqa: F401  sets up the handlers

    theirs, ours = logging.getLogger("vllm"), logging.getLogger("vllm_epd")
    if not ours.handlers:
        ours.handlers = list(theirs.handlers)
        ours.setLevel(theirs.level)
        ours.propagate = False
