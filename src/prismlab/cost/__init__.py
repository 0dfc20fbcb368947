"""What a model costs: parameters, operations, memory, disk and time, from its shape alone. Imports no torch."""
