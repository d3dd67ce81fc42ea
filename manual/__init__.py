"""The documentation's pages that are made from the code, and the hook of mkdocs that adds them. Not installed."""
