"""The scribe: the one process that writes certificates and events into an SQLite file for all workers of a server.

In a worker's own thread each step of a transaction waits for an interpreter that is busy with requests, while the
others who want to write wait for the transaction; and each worker has transactions of its own. What reaches the scribe
together, from whichever worker, shares one. Where it can't be reached, a worker writes by its thread as it would
without: correctness rests on SQLite's transactions alone.
"""

from clustercert.store.scribe.link import Scribe
from clustercert.store.scribe.process import serve

__all__ = ["Scribe", "serve"]
