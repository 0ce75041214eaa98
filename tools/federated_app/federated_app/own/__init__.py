"""The script and the files beside it that it imports, as they were."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # they import each other by their own names
