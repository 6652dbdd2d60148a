"""Build the two C extensions into a wheel; everything else stands in pyproject.toml.

An editable install by make (VICKREY_EDITABLE=1) leaves them out: the Makefile builds them in place when a source
changed.
"""

import os

from setuptools import setup

EXTENSIONS = ["shm_layout/build_ffi.py:ffibuilder", "dataplane/build_ffi.py:ffibuilder"]

setup(cffi_modules=[] if os.environ.get("VICKREY_EDITABLE") else EXTENSIONS)
