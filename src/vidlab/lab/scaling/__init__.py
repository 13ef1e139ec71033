"""The dial of size, `model.scale`: its rule, and the resolvers that every composition reads it by."""
