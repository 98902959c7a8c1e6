"""The transfer-localization plane: changes against a baseline with paired intervals, as a picture and in sentences."""
