"""Is ended by a signal the first time, and then says whether it is in a session of its own: for test_limited_process.py."""

import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    mark = Path(sys.argv[1])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.Signals[sys.argv[2]])
    print(os.getsid(0) == os.getpid())
