"""The server: a JSON API over the collections of a database, and the page that uses it."""

from boxwood.serve.app import create_app
from boxwood.serve.schemas import Limits

__all__ = ["Limits", "create_app"]
