"""The script and the files beside it that it imports, as they were."""

import sys
from pathlib import Path

from federated_app.definitions import Finder

SCRIPT = Path(__file__).with_name("the-script")

sys.path.append(str(SCRIPT.parent))  # they import each other by their own names
sys.meta_path.insert(0, Finder(f"{__name__}.{SCRIPT.stem}", SCRIPT))
