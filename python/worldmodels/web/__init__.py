"""The page that dreams in the browser."""
