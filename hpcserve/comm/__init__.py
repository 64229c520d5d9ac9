"""Connections between hpcserve processes, over `distributed.comm` with mutual TLS."""
