"""The peer: Hugging Face's `Trainer` as its documentation shows it, fine-tuning on the fused text of each window.

Run by `xplat bench training` as ``python -m benchmarks.stock_trainer FILE``. `FILE` is JSON: `base`, `texts`, `targets`
(lists of 0 and 1), `batch`, `max_tokens`, `threads`. Prints the seconds of `Trainer.train()` alone: loading the encoder
and tokenizing are given to it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Train one pass over the examples and print ``{"examples": …, "seconds": …}``."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    given = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    tokenizer = AutoTokenizer.from_pretrained(given["base"])
    model = AutoModelForSequenceClassification.from_pretrained(
        given["base"], num_labels=len(given["targets"][0]), problem_type="multi_label_classification"
    )
    read = tokenizer(given["texts"], truncation=True, max_length=given["max_tokens"])
    examples: list[dict[str, Any]] = [
        {"input_ids": ids, "attention_mask": mask, "labels": [float(one) for one in targets]}
        for ids, mask, targets in zip(read["input_ids"], read["attention_mask"], given["targets"], strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="xplat-trainer-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=given["batch"],
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model, args=arguments, train_dataset=examples, data_collator=DataCollatorWithPadding(tokenizer)
        )
        outcome = trainer.train()
    print(json.dumps({"examples": len(examples), "seconds": outcome.metrics["train_runtime"]}))  # noqa: T201 - read by the parent


if __name__ == "__main__":
    main()
