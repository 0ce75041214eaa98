"""Make an app from a training script: python tools/federate train.py ../my-app; see command.py."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the tools

from federate.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
