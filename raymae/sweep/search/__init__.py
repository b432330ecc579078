"""What a sweep runs next, and what it stops early."""
