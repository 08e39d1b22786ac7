"""The machines: what every platform can do, the platforms, the collection of VMs."""
