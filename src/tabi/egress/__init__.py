"""Egresses. Vocabulary: an *egress* opens a stream to a destination; an *upstream* is the next proxy on the way."""
