"""Making aligned models: multilingual instruction tuning (MIST), MIDALIGN and CLO, on TRL, PEFT and accelerate.

`losses` are pure functions; `schedule` says which rows each step sees; `mist`, `midalign` and `clo` are thin subclasses of
TRL's SFTTrainer; `run` puts a training run together, keeps and resumes it; `measures` holds the result against the model
before it.
"""
