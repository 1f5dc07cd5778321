"""Exact routes: closed forms, enumeration, quadrature."""
