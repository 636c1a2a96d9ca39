# SPDX-License-Identifier: Apache-2.0
"""Files that are copied into a demo model's folder, where transformers loads them with `trust_remote_code`.

They import transformers and nothing of this package: next to a model there is no package.
"""
