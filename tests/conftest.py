"""Settings that every test shares."""

import os
from pathlib import Path

from hypothesis import settings

# No deadlines: two busy cores make any of them flaky. In CI the examples are the same each run, so a merge fails for its own reasons.
settings.register_profile("sash", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("sash")

# No test may depend on how fast its machine is: forecasts take the rates of a made-up one, and measure nothing.
os.environ["SASH_RATES"] = str(Path(__file__).parent / "cost" / "rates.json")
os.environ["SASH_ARRAY_RATES"] = str(Path(__file__).parent / "arrays" / "rates.json")
