"""Prism: a laboratory for LLM mid-training, from mixture to decided report."""

__version__ = "0.1.0"
