"""Run any OCI image behind the wall you choose."""

__version__ = "0.1.0"
