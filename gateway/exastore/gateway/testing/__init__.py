"""Fakes for tests of what lies before the object store."""
