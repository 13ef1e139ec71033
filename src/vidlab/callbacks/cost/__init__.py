"""What a training costs as it goes, and the budget that ends it."""
