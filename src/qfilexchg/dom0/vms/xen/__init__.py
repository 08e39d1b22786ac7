"""The Xen platform: xl, and the genuine xenstored."""
