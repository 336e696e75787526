"""What a person asks before a session and when something is silent: is all of it fit, and which link broke."""
