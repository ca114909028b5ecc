"""Model packages: verify and load them, route to them, follow the folder."""
