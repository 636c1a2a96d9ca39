# SPDX-License-Identifier: Apache-2.0
"""What the planner says about the tables and figures of the paper (arXiv 2501.05460): see README.md."""
