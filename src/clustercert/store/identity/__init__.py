"""Queries for the built-in identity service."""
