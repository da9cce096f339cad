"""Files of others, in and out."""
