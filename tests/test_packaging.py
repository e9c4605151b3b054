"""What a package index shows: no link that leads nowhere there."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
URL = "https://example.org/owner/keras_mpt"


def described(url):
    environment = {**os.environ, "KERAS_MPT_URL": url}
    command = [sys.executable, "setup.py", "--long-description"]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return process.stdout


@pytest.mark.tensorflow_only
def test_the_links_of_the_readme_are_absolute():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [target for *_, target in LINK.findall(readme)]
    relative = {target for target in targets if not target.startswith("https:")}
    assert len(relative) > 10
    found = described(f"{URL}/")
    for image, _, target in LINK.findall(found):
        path = target.removeprefix(f"{URL}/{'raw' if image else 'blob'}/main/")
        assert path in relative if path != target else target in targets
    assert len(LINK.findall(found)) == len(targets)
    without = described("")  # of a repository that is nowhere
    assert {target for *_, target in LINK.findall(without)} == set(targets) - relative
    assert "[" not in re.sub(r"```.*?```|`[^`]*`", "", LINK.sub("", without), flags=re.DOTALL)


@pytest.mark.tensorflow_only
def test_each_extra_is_on_the_page():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    names = re.findall(r'^    "(\w+)": \[', text.partition("RUNTIME = {")[2].partition("\n}\n")[0], re.MULTILINE)
    assert {"tensorflow", "jax", "torch", "larq", "lce", "litert", "hub"} <= set(names)
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) - {"all", "examples"} == set(names)
