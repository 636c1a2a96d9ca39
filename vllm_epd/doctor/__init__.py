# SPDX-License-Identifier: Apache-2.0
"""`vllm-epd doctor`: real transfers over every tier that can be there, each between two instances."""
