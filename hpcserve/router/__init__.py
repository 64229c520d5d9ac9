"""Chooses workers. Pure: no clock, no I/O, no asyncio, no Dask; the simulator runs the same objects in virtual time.

Nothing is imported here: who wants the timing of an engine does not want the index, which needs numpy.
"""
