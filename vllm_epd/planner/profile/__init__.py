# SPDX-License-Identifier: Apache-2.0
"""What a model costs on some hardware, by stage, measured or derived; and what it takes of memory."""
