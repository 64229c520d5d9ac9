"""/v1/files: files that batches read and write."""
