# SPDX-License-Identifier: Apache-2.0
"""Cards: rates as their vendor states them, and how much of them kernels attain. Pure.

Rates: NVIDIA's data sheets of the A100 (SXM4, 80 GB), the H100 (SXM5) and the H200 (SXM5), for dense BF16 without
sparsity; memory as `nvidia-smi` shows it; links and host cores by the user guides of DGX A100, DGX H100 and DGX H200
(eight cards a host; ConnectX-6 at 200 Gb/s and ConnectX-7 at 400 Gb/s for each card).

Attained: large matrix products reach about 70 % of the peak on A100 (FlashAttention-2, Dao 2023: 225 of 312 TFLOP/s
for a whole model) and about 60 % on H100, which its power limit holds down; fused attention half of the peak
(FlashAttention-2: 50 to 73 % on A100; FlashAttention-3, Shah et al. 2024: 75 % on H100, FlashAttention-2 35 % there);
reading memory 80 %. None of them is fitted to what a plan is compared with.
"""

from dataclasses import dataclass

GB = 10**9
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Card:
    """One kind of device, in hosts of eight.

    Attributes:
        name: of the kind.
        memory_bytes: of one.
        flops: floating-point operations a second, dense BF16.
        bytes_per_s: of its memory.
        nvlink_bytes_per_s: to another card of the host, in one direction.
        pcie_bytes_per_s: to its host, in one direction.
        network_bytes_per_s: of its network card, in one direction.
        cores: of a host.
        products: share of `flops` that large matrix products attain.
        attention: share of `flops` that fused attention attains.
        memory: share of `bytes_per_s` that kernels attain.
        links: share of the rates of links that transfers attain.
    """

    name: str
    memory_bytes: int
    flops: float
    bytes_per_s: float
    nvlink_bytes_per_s: float
    pcie_bytes_per_s: float
    network_bytes_per_s: float
    cores: int
    products: float
    attention: float = 0.5
    memory: float = 0.8
    links: float = 0.8


A100 = Card("A100-80GB", 81_920 * MIB, 312e12, 2039 * GB, 300 * GB, 32 * GB, 25 * GB, cores=128, products=0.7)
H100 = Card("H100", 81_559 * MIB, 989e12, 3350 * GB, 450 * GB, 64 * GB, 50 * GB, cores=112, products=0.6)
H200 = Card("H200", 143_771 * MIB, 989e12, 4800 * GB, 450 * GB, 64 * GB, 50 * GB, cores=112, products=0.6)

CARDS = (A100, H100, H200)
