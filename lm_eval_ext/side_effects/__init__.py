"""What steering or training changes besides what it is meant to: perplexity, next tokens, language and length of answers.

`measuring.measure` measures a model against its baseline, text by text; `panel.Panel` sums it up and is what a gate reads.
"""
