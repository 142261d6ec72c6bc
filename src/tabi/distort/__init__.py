"""Molding: what goes wrong on purpose, what is rewritten, and what others see of clients."""
