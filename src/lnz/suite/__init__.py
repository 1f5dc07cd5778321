"""Models with known log Z as energies, and how well a route does on them."""
