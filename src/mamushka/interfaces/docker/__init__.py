"""Docker's dialect: its units, fields and JSON, derived from the engine's values.

The command line shows them and the HTTP API will answer with them; nothing here does anything to the host.
"""
