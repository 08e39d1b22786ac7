"""Second implementations of what the exchange rests on, for fast tests. No claim about real VMs rests on them."""
