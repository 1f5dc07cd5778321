"""The core: spaces, energies, estimates and the route protocol."""
