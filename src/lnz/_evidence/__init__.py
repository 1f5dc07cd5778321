"""The evidence of Bayesian models: of other packages' models, of a prior and a likelihood, and from posterior draws."""
