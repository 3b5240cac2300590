"""The subset of Keystone's API that clients of the vendors' clouds need."""
