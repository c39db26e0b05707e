"""The kernels' benchmark, one JSON: `pgolf bench` under another name, for a checkout without an installed pgolf.

python benchmarks/kernels.py [--device cuda] [--artifact FILE.pgolf] [-o RESULT.json]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from pgolf.cli import main

if __name__ == "__main__":
    sys.argv[:1] = ["pgolf", "bench"]
    main()
