"""What training V and training M share."""
