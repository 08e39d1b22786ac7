"""What a person at a desktop of a VM sees. It needs GTK 3, which a VM without a desktop has no use for; nothing else here imports it."""
