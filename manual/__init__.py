"""The pages of the documentation that are made from the code, and the hook of mkdocs. Not installed."""
