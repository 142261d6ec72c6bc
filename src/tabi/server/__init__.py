"""The server: builds the parts from a configuration, starts, drains, stops; alone or in several processes."""
