"""The store on both databases."""

from tests.gateway.servers import own_postgresql, postgresql, settings, store

__all__ = ["own_postgresql", "postgresql", "settings", "store"]
