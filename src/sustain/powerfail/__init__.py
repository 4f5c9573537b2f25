"""Power: what the mains and the battery say, what that means, and how much can still be moved on the battery."""
