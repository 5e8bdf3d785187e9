"""Bytes from nowhere against every parser of strangers' bytes: ``python -m tests.fuzz [NAME…] [--seconds N]``."""
