"""What a user of conditional random fields asks for: probabilities, marginals, decoding, samples, constraints."""
