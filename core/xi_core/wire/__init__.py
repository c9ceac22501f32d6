"""Messages between xi's processes. Structs are append-only; `PROTOCOL` grows when a change can't be."""

PROTOCOL = 1
