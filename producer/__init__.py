"""Those who ask: the clients that submit requests and read their results."""

from headrace.producer.async_client import AsyncClient
from headrace.producer.client import Client

__all__ = ["AsyncClient", "Client"]
