"""Which extra brings a package that loading does without, and one clear line where it is not installed.

Whatever imports such a package says `extras.need(...)` first (a test reads the source for it); what works for long says it
at its beginning.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

from pgolf.errors import MissingExtraError

EXTRA_OF = {  # as Python imports it: the extra of pyproject.toml
    "numba": "pack",
    "scipy": "pack",
    "python_minifier": "pack",
    "sentencepiece": "train",
    "matplotlib": "train",
    "triton": "gpu",
    "distributed": "dask",
    "transformers": "hf",
    "tokenizers": "hf",
    "gguf": "gguf",
}


def need(*packages: str) -> None:
    """Raises MissingExtraError, which names what is missing and the extra to install, unless all of EXTRA_OF's are here."""
    missing = [name for name in packages if sys.modules.get(name) is None and find_spec(name) is None]
    if missing:
        extras = ",".join(dict.fromkeys(EXTRA_OF[name] for name in missing))
        raise MissingExtraError(f"this needs {', '.join(missing)}, not installed here: pip install 'pgolf[{extras}]'")
