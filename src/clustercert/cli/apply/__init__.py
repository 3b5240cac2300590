"""Commands that compare the service with documents and change it."""
