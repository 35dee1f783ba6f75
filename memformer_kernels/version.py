"""The version, once: packaging reads it from here, so that a source tree on the path needs no metadata."""

__version__ = "0.1.0"
