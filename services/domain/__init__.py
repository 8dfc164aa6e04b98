"""What the business knows: plain dataclasses and functions. Imports neither grpc nor boto3."""
