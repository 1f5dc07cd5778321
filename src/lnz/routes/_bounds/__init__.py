"""Routes that bound log Z."""
