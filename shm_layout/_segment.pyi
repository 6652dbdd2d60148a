"""What the built module gives: cffi's two objects, typed no further; shm_layout's other modules give them types."""

from typing import Any

ffi: Any
lib: Any
