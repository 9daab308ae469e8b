"""Run notebooks again and keep their outputs, so that a difference in them is a difference in the results.

    python tests/rerun_notebooks.py                       # the tutorials
    python tests/rerun_notebooks.py tutorials/02*.ipynb   # some of them
    NH2ST_DATA=folder python tests/rerun_notebooks.py notebooks/*.ipynb   # on the real sections of that folder

What is not a result is left out: progress bars and other standard error, times, and colour codes of a terminal. Large
figures are kept in 256 colours, a third of their size.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).parents[1]
LARGE = 150_000  # bytes of a figure


def clean(notebook: NotebookNode) -> None:
    """Leave out of the outputs what differs between two runs that give the same."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "text" in output:
                output.text = re.sub(r" +$", "", re.sub(r"\x1b\[[0-9;]*m", "", output.text), flags=re.MULTILINE)
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])


def smaller(png: str) -> str:
    """A figure (base64) without what its writer says about itself; a large one in 256 colours."""
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA")).convert("RGB")
    packed = io.BytesIO()
    flat.save(packed, "png", optimize=True)
    if packed.tell() > LARGE:
        packed = io.BytesIO()
        flat.quantize(256, dither=Image.Dither.NONE).save(packed, "png", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def main() -> None:
    """Run the notebooks that are named, in an empty folder each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=sorted((ROOT / "tutorials").glob("*.ipynb")))
    for path in parser.parse_args().paths:
        if path.resolve().parent.name == "notebooks" and not os.environ.get("NH2ST_DATA"):
            parser.error(f"{path} needs real sections: set NH2ST_DATA to their folder.")
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=None, kernel_name="python3", resources=resources).execute()
        clean(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
