"""Messages between xi's processes. Structs are append-only; `PROTOCOL` grows when a change can't be."""

from msgspec import DecodeError

PROTOCOL = 1

UNREADABLE = (DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises of bytes that are no message: also text that is no UTF-8, and what is nested too deeply, are errors of their own."""
