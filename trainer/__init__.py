"""Training and release of interest models: log ▸ windows ▸ examples ▸ fine-tune ▸ evaluate ▸ export ▸ publish.

`trainer.train.train` is the whole of it on one page. Importing this package costs nothing: torch comes with
`trainer.train`, and the Hugging Face libraries only when an encoder is fine-tuned.
"""
