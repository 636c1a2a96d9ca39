# SPDX-License-Identifier: Apache-2.0
"""What `vllm_epd.ops` is made of, beside the compiled extension."""
