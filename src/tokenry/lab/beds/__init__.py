"""Small host models and tasks that train in minutes."""
