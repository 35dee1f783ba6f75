"""Where the two packages live. The metadata is in pyproject.toml; nothing here imports torch."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["memformer_kernels", "memformer_kernels.*"]),
        *find_packages("python"),
    ],
    package_dir={"memformer_lab": "python/memformer_lab"},
    package_data={"memformer_kernels": ["py.typed"], "memformer_lab": ["py.typed"]},
)
