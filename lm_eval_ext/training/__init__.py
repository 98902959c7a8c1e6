"""Training aligned models: multilingual instruction tuning (MIST), MIDALIGN and CLO, on TRL, PEFT and accelerate.

`methods` has a module for each method, with its options, its data and its loss; `config` what their options share; `losses`
the equations as pure functions; `schedule` says which rows each step sees; `trainer` is TRL's SFTTrainer for all methods;
`run` puts a run together, saves and resumes it; `measures` and `comparing` compare trained models with their base.
"""
