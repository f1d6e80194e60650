"""What is kept: a database, files by their content, and what is on its way in."""
