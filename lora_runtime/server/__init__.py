"""The BFL API over this project's backends: routes and bodies as BFL has them, and a few of our own."""
