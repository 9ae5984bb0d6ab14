"""Run a module with this checkout as the package ``cacophony``, installed or not.

    python bench/from_checkout.py cacophony.bench all --json results.json

The checkout's root is the package, whatever its folder is called, so Python cannot find it by itself. Nothing else of
the checkout becomes importable, and an installed ``cacophony`` is ignored.
"""

import importlib.util
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


class CheckoutFinder:
    """Finds ``cacophony`` and what is in it, before any other finder is asked."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return where ``name`` is; None for what is not ours."""
        if name == "cacophony":
            init = ROOT / "__init__.py"
            return importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(ROOT)])
        return PathFinder.find_spec(name, path, target) if name.startswith("cacophony.") else None


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python bench/from_checkout.py MODULE [ARGUMENT ...]")
    # Python puts the folder of a script first on the path: bench's modules would hide others of their names.
    sys.path[:] = [place for place in sys.path if Path(place).resolve() not in (ROOT, ROOT / "bench")]
    sys.meta_path.insert(0, CheckoutFinder())
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
