"""The vLLM backend: `--model steered-vllm`.

`model` is the harness's side; `worker` runs in vLLM's processes. What needs no vLLM is apart, and tested everywhere:
`release` (is there a vLLM that can be steered), `rows` (which row of the table each token of a batch takes), `salts` (which
cached prefixes may be shared), `jobs` (the fewest prefills that score some requests), `request_args` (what travels with a
request), `stream` (adding to the residual stream), `tables` (a table as bytes). `custom_op` steers compiled models.
"""
