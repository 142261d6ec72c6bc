"""For operators: the access log, metrics and observers of sessions."""
