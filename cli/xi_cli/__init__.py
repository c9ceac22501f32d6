"""The command line of xi."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
