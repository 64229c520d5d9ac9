"""The head: the Dask scheduler process. It knows the workers, assigns requests to them, and keeps the pools filled."""
