-- Run once by PostgreSQL's image, beside the database that POSTGRES_DB names.
CREATE DATABASE mlflow;
