"""Which client may go where: pure decisions, without I/O and without a clock.

Vocabulary: the *guard* keeps clients from outside away from inner networks; *users* are names with passwords.
"""
