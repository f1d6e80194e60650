"""The remote backend against a server that behaves, and against one that misbehaves on purpose."""
