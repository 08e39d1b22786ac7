"""The heart: who may send what to whom, and where each pendrive is."""
