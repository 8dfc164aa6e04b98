"""What a month on AWS costs, by design: list prices in a dated table, plain arithmetic on top."""
