"""Ingest: sources in, durable quotes in the queue out."""
