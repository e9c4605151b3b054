"""Packaging of keras_mpt: metadata and dependencies. Settings of the tools live in pyproject.toml."""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# Where the repository is published, such as https://github.com/OWNER/keras_mpt. Project links and the README's relative
# links need it; mkdocs.yml reads the same variable.
URL = os.environ.get("KERAS_MPT_URL", "").rstrip("/")


def read_version():
    """The version in keras_mpt/__init__.py, read as text: importing the package would need its dependencies."""
    source = (ROOT / "keras_mpt" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if match is None:
        raise RuntimeError('keras_mpt/__init__.py must hold a line of the form __version__ = "X.Y.Z"')
    return match.group(1)


def read_readme():
    """The README as a package index shows it: relative links made absolute or, without URL, reduced to their text."""

    def absolute(match):
        image, text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        if not URL:
            return "" if image else text
        return f"{image}[{text}]({URL}/{'raw' if image else 'blob'}/main/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", absolute, (ROOT / "README.md").read_text(encoding="utf-8"))


def project_urls():
    if not URL:
        return {}
    pages = {"Documentation": "docs/index.md", "Changelog": "CHANGELOG.md", "Tickets": "zoo/README.md"}
    return {"Source": URL, "Issues": f"{URL}/issues", **{k: f"{URL}/blob/main/{page}" for k, page in pages.items()}}


# larq keeps numpy below 2, which has no wheels from Python 3.13 on, and with it JAX at 0.7.1: it is an extra of its own
# so that only an installation with larq pays for that. tf-keras serves larq alone; keras_mpt never imports it.
NUMPY_1 = 'python_version < "3.13"'

# There are no larq-compute-engine wheels for Python 3.13 or 64-bit ARM Linux.
LCE_WHEELS = 'python_version < "3.13" and platform_machine != "aarch64"'

# What users can switch on, one extra for each backend, converter or module that needs more than the base.
RUNTIME = {
    "tensorflow": [
        "tensorflow>=2.17",
        "tensorboard",  # for Keras' callback of that name; TensorFlow no longer brings it
    ],
    "larq": ["tensorflow>=2.17", f"tf-keras>=2.17; {NUMPY_1}", f"larq>=0.13; {NUMPY_1}"],
    "jax": ["jax>=0.6.1"],
    "torch": ["torch>=2.3", "keras>=3.14"],  # before, Keras takes no seed from 2**31 on with PyTorch
    "lce": [f"larq-compute-engine>=0.16; {LCE_WHEELS}"],
    "litert": ["ai-edge-litert>=2.0"],
    # importlib_resources: tensorflow-datasets needs it to prepare data, and does not say so.
    "datasets": ["tensorflow-datasets>=4.9", "importlib_resources", "pillow"],
    "analysis": ["matplotlib"],
    "hub": ["huggingface_hub>=0.30"],
    "qonnx": ["qonnx>=1.0", "onnxruntime"],
    # A pre-release is what there is; wheels are for x86-64 Linux.
    "tflm": ['tflite-micro>=0.dev20261023182759; platform_system == "Linux" and platform_machine == "x86_64"'],
}

# What working on the project needs.
PROJECT = {
    "examples": ["matplotlib", "pillow", "scikit-learn"],
    "docs": [
        "ipykernel",
        "matplotlib",
        "mkdocs-material>=9.5,<10",
        "mkdocstrings[python]>=1,<2",
        "nbclient",
        "pytest>=8",
    ],
    "dev": [
        "build",
        "hls4ml>=1.3; python_version < '3.13'",
        "hypothesis",
        "matplotlib",
        "mypy>=1.18",
        "pillow",
        "pytest>=8",
        "pytest-xdist",
        "ruff",
        "scikit-learn",
        "scipy",
    ],
}

# The published tickets are in zoo/ of the repository, and here in an installed package.
TICKETS = "keras_mpt.zoo.tickets"

setup(
    name="keras-mpt",
    version=read_version(),
    description="Multi-prize tickets in Keras 3: accurate binary networks found by pruning random weights",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    author="The keras_mpt authors",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["keras", "pruning", "binary neural networks", "quantization", "lottery ticket hypothesis"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    project_urls=project_urls(),
    entry_points={"console_scripts": ["keras-mpt = keras_mpt.__main__:main"]},
    packages=[*find_packages(include=["keras_mpt", "keras_mpt.*"]), TICKETS],
    package_dir={TICKETS: "zoo"},
    package_data={"keras_mpt": ["py.typed"], TICKETS: ["presets.json", "*.mpt", "*.md"]},
    zip_safe=False,
    python_requires=">=3.10",
    install_requires=["keras>=3.12,<4", "numpy>=1.26", "absl-py"],
    extras_require={
        **RUNTIME,
        "all": sorted({requirement for extra in RUNTIME.values() for requirement in extra}),
        **PROJECT,
    },
)
