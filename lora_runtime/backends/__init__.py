"""Who renders: this process (`local`) or the BFL API (`remote`). `base` has the protocol that both keep."""
