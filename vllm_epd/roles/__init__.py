# SPDX-License-Identifier: Apache-2.0
"""What an instance is, how it becomes that, and how it tells others."""
