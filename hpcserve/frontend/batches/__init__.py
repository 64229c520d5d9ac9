"""/v1/batches: many requests at once, answered when there is room. They are run by another process."""
