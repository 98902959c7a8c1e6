"""What is asked: the data sources, the questions built from them, and how an answer is scored."""
