"""Runs the notebooks of this folder and keeps what they print and draw.

    python docs/notebooks/run.py [NAME ...]

What runtimes log and when a cell ran is left out, so that files change only where results do.
"""

import pathlib
import re
import sys
import tempfile

import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parent


def is_log(output):
    """Return whether TensorFlow wrote this; in a session with a prompt it logs to stdout, too."""
    return output.get("name") == "stderr" or re.match(
        "(INFO|WARNING):tensorflow|Saved artifact", output.get("text", "")
    )


def run(path):
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"kernel_name": "python3", "coalesce_streams": True}
        NotebookClient(notebook, **settings, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_log(output)]
    notebook.metadata.pop("language_info", None)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        if path.stem in sys.argv[1:] or len(sys.argv) == 1:
            run(path)
            print(f"{path.name}: {path.stat().st_size:,} bytes")
