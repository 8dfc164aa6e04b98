"""Dispatch: from the queue to a scorer, from the scorer to the gateway."""
