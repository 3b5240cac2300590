"""The HTTP server: uvicorn, its listening socket, its TLS files, and the application that it serves."""
