"""Transports: carriers of messages between processes, and the calls (`rpc`) that the control plane makes over them."""
