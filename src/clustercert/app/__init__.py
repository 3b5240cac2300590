"""The only wiring: settings -> store, custody, signers, use cases (`wiring`) -> the ASGI application (`asgi`).

What a worker does beside answering is in `periodic`. The command line works with `wiring` alone and loads no web
framework.
"""
