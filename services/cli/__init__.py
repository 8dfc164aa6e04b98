"""The `tapewatch` command."""
