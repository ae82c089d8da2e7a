"""A run: its folder, and what goes on in it. Nothing here is imported by `training`'s pure parts or below."""
