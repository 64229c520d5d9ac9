"""The node agent: one process a Slurm job, holding one engine, one Dask worker and one data-plane listener."""
