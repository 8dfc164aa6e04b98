"""Score, then record, then acknowledge: the path that dispatch and a one-shot scorer share."""
