"""How a policy comes into force under live traffic: beside its incumbent, measured, watched, recorded, undone."""
