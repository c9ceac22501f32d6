"""The replica's process (`python -m xi_core.replica`): one engine, one model, its serving layer, and the server that gateways dial."""
