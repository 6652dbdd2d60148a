"""What the built module gives: cffi's two objects, typed no further; the modules around it give them types."""

from typing import Any

ffi: Any
lib: Any
