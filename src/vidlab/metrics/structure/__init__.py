"""How closely videos follow the structure they were told."""
