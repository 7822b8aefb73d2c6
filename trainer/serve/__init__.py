"""mode=serve: a page and an HTTP interface for a trained network."""
