"""How flows become deployments: a file for those who know Prefect, a program for one host."""
