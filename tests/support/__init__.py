"""Helpers that several folders of tests share: stores, services, doubles, sample objects."""
