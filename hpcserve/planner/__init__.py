"""How many workers of which role a deployment should have. Pure, like the router; the simulator uses it, too."""
