"""Interception: looking into TLS and HTTP, for the sessions that were chosen and no others."""
