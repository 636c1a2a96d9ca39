# SPDX-License-Identifier: Apache-2.0
"""What the serving software adds to the work of a card. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Software:
    """A way to serve.

    Attributes:
        name: with its version.
        suffix: of the hardware's name in a profile's name.
        graphs: the language model runs as CUDA graphs; otherwise the host launches every kernel. Encoders never do.
        launch_s: of the host, for each kernel that it launches.
        step_s: of the host, for each step of the language model, while the card waits.
        fused: the attention of all encoders keeps its scores on the chip.
        decodes: images come as files; otherwise as pixels.
    """

    name: str
    suffix: str
    graphs: bool
    launch_s: float
    step_s: float
    fused: bool
    decodes: bool


LAUNCH_S = 10e-6
"""About 5 us for the launch itself and as much for PyTorch to get there (their blogs on CUDA graphs)."""

TODAY = Software("vLLM with CUDA graphs", "", graphs=True, launch_s=LAUNCH_S, step_s=0.5e-3, fused=True, decodes=True)
"""vLLM's present engine overlaps the host's work with the card's; half a millisecond a step stays, as an assumption."""

EAGER = Software(
    "vLLM 0.6.1, eager", "-eager", graphs=False, launch_s=LAUNCH_S, step_s=4.6e-3, fused=False, decodes=False
)
"""The software of the paper (arXiv 2501.05460), whose times leave the loading of images out.

Of a step of Llama 3 8B on an H100, 38 % were the card's and 29 % scheduling, before version 0.6 (vLLM's blog, September
2024): 4.6 ms, where the card's part is that of reading 16 GB at 80 % of 3.35 TB/s.
"""
