"""The HTTP server below the application: listening, connections, certificates. Knows nothing of the API."""
