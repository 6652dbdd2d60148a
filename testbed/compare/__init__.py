"""Side by side on the same arrivals: balancers in interleaved rounds before one set of servers, and what came of it."""
