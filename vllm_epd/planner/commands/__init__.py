# SPDX-License-Identifier: Apache-2.0
"""`vllm-epd simulate` and `vllm-epd plan`: what is asked, what is shown, what is written."""
