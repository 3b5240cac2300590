"""`clustercert certificate`: certificates, and who has access."""
