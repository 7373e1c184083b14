"""The command line: every verb parses, calls one function and prints."""
