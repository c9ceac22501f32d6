"""Lets these tests import what runs the guides' commands (`guided_runs.py`)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("guided_runs")
