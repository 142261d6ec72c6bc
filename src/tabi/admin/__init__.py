"""The admin API and its page: how operators see and steer the running server. Imported only where it is configured."""
