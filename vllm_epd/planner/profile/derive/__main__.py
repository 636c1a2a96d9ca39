# SPDX-License-Identifier: Apache-2.0
"""`python -m vllm_epd.planner.profile.derive` writes the derived profiles that come with the package."""

from vllm_epd.planner.profile.derive.ready import ready_profiles
from vllm_epd.planner.profile.store import READY, save_profile

if __name__ == "__main__":
    READY.mkdir(exist_ok=True)
    for name, profile in ready_profiles().items():
        save_profile(profile, READY / name)
