"""Learning: phases, negative phases, the trainer and the whole run."""
