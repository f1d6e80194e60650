"""What `make bench` runs: one script a question; a table for people, one JSON line for machines."""
