"""`python -m trainer.score`: predictions scored without a model, and two runs compared."""
