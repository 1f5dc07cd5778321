"""The models: energies with structure that routes and kernels can use."""
