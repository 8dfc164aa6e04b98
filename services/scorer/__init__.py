"""The scorer: streaming state, the models, reasons."""
