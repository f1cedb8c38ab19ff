"""What lies on the disk, and what may be believed of it."""
