"""Protos to domain values and back."""
