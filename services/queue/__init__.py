"""The quote queue: its port, its message format and its adapters."""
