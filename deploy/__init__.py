"""The AWS deployment: CDK stacks, the Lambda's zip, and the checks that need no account."""
