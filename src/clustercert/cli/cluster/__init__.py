"""`clustercert cluster`: the clusters, and their client CAs."""
