"""What can be normalised: Boltzmann machines, Gaussians, mixtures, independent units."""
