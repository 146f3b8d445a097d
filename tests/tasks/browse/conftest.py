"""The page shows the stores of the report's tests."""

import runpy
from pathlib import Path

_NEIGHBOUR = runpy.run_path(str(Path(__file__).parents[1] / "report" / "conftest.py"))
globals().update({name: it for name, it in _NEIGHBOUR.items() if not name.startswith("__")})
