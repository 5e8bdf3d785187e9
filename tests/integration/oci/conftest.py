"""The bundle and the command, for every test of the command line."""

from tests.integration.oci.test_command import oci

__all__ = ["oci"]
