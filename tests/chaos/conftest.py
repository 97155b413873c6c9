"""The fixtures of the integration tests serve here too."""

from tests.integration.conftest import new_cluster

__all__ = ["new_cluster"]
