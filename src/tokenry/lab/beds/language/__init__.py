"""Small language models and text tasks that train in minutes."""
