"""The user's tables: read, started from a mixture, their gaps filled."""
