"""What tests agree on, without torch, which many of them do without."""

import os
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = Path(sysconfig.get_path("stdlib"))  # real text that every machine has
FULL_COUNTS = os.environ.get("FULL_COUNTS") == "1"  # as many kills, presets and faults as take minutes to an hour
