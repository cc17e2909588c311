"""`latentrt generate`, of one request or of a file of them, and the pictures that lead it."""
