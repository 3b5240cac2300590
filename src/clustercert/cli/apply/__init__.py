"""Commands that compare YAML documents with the service, and apply the differences."""
