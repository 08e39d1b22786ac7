"""The VM side. The standard library alone, and little of it: these programs start at every udev event, often under emulation."""
