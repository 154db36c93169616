"""What the history of backups tells: tables, forecasts, anomalies, plots. All of it reads, nothing of it writes.

pandas and its neighbours cost seconds to import, so nothing imports this room at the top of a module that the command
line, a flow or a task loads.
"""
