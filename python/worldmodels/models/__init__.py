"""V (ConvVAE), M (MDN-RNN), C (linear controller) and the agent made of the three."""
