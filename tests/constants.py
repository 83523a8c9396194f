"""What tests agree on, without torch, which many of them do without."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
FULL_COUNTS = os.environ.get("FULL_COUNTS") == "1"  # as many kills, presets and faults as take minutes to an hour
