"""What lies at rest: the readers of the bundled tape, of CSV and Parquet files and of the lake, and model versions."""
