"""How fast the dream is: worlds of known size, peers that play the same world, and the table of both."""
