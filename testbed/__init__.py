"""Real servers, open-loop load, the peers to compare with, and the demo."""
