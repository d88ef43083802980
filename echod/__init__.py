"""echod: an echo daemon that can be trusted as the far end of a test."""

__version__ = "0.1.0"
