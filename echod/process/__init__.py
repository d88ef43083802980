"""Lives: the supervisor, its workers, and what a daemon owes to the system."""
