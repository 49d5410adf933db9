"""The recipe as Prefect flows, and the commands that need Prefect."""
