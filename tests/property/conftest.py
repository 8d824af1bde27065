# SPDX-License-Identifier: Apache-2.0
"""A path to the engine that the property tests share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
