"""Routes whose cost does not grow with the width of the graph: belief propagation, and limits of log Z."""
