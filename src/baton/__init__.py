"""Baton: a serving cluster for large language models, prefill and decode on separate workers."""

__version__ = "0.1.0"
