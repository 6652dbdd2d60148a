"""Build the two C extensions; everything else stands in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["shm_layout/build_ffi.py:ffibuilder", "dataplane/build_ffi.py:ffibuilder"])
