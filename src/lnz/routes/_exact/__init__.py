"""Exact routes."""
