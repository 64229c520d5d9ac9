"""Checks of a site and a configuration before anything is spent, each with what to change. Starts no worker."""
