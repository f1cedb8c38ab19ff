"""Traces: what a teacher writes, how it is stored, checked, shortened and counted."""
