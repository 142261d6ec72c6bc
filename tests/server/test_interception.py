"""Interception as it is composed."""
