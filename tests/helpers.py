"""What several test files share."""

from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"  # a real checkpoint; absent from a bare clone
