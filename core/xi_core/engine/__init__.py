"""Engines: the interfaces that adapters over inference libraries implement, their descriptor, and the batcher that steps one."""
