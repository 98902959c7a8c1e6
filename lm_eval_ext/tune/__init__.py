"""Choosing what to steer: where naming the country leaves room, and the plan that a development split chooses."""
