"""Open-loop load over HTTP: requests leave at their scheduled times, whatever the answers do."""
