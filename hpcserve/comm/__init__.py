"""Connections between hpcserve processes, over TLS in which both sides show the deployment's certificate."""
