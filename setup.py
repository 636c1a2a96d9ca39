# SPDX-License-Identifier: Apache-2.0
"""Build steps that pyproject.toml cannot express; everything else is declared there."""

from setuptools import setup

setup()
