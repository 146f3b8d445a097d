"""A local web page over a store: search, filter, look. Needs the extra `browse`."""

from pixelmill.tasks.browse.query import Filter, Index
from pixelmill.tasks.browse.server import make_app, serve

__all__ = ["Filter", "Index", "make_app", "serve"]
