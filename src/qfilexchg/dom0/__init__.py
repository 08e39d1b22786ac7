"""The trusted side: the exchange, the machines, the consent of the person, the commands."""
