import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples" / "recipes"))

import backend  # noqa: E402, F401 - before Keras
