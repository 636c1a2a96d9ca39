# SPDX-License-Identifier: Apache-2.0
"""`python -m experiments.reality`."""

from experiments.reality.compare import main

raise SystemExit(main())
