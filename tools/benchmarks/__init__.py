"""The commands of tools/benchmark.py, a module each: ``add_command`` is light, ``run`` measures."""
