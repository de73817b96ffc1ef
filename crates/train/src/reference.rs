//! Every key of a run file: what it may be and what it does. What is not listed here is unknown.

use std::fmt::Write as _;

/// A key of a run file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Its dotted name; `NAME` stands for a name that the user chooses.
    pub name: &'static str,
    /// What it may be.
    pub values: &'static str,
    /// What it is if it is absent.
    pub default: &'static str,
    /// What it does.
    pub does: &'static str,
}

/// All keys but those of the families, in the order in which they are explained.
pub const KEYS: &[Key] = &[
    key(
        "model.source",
        "a folder, a GGUF file, a hub id `org/name[@revision]`, or `tiny`",
        "must be given",
        "the base model",
    ),
    key(
        "model.dtype",
        "`as-stored`, `f32`, `bf16`, `f16`, `f64`, `nf4`",
        "`as-stored`",
        "how frozen weights are held",
    ),
    key(
        "model.device",
        "`cpu`, `cuda`",
        "`cpu`",
        "what the model lies on",
    ),
    key(
        "task.kind",
        "`causal-lm`, `classification`",
        "`causal-lm`",
        "what is learnt: tokens, or the class or value of a row",
    ),
    key(
        "task.num_labels",
        "an integer above 0",
        "found in the rows",
        "how many classes; 1 is a regression",
    ),
    key(
        "data.train",
        "a list of paths, globs, `hub:org/name/file`, or `{path, weight}`",
        "must be given",
        "the rows to learn; a weight is how often an epoch takes them",
    ),
    key(
        "data.eval",
        "a list of paths, globs or `hub:org/name/file`",
        "none",
        "the rows that are held out",
    ),
    key(
        "data.eval_fraction",
        "a number between 0 and 1",
        "none",
        "the share of the training rows that is held out instead",
    ),
    key(
        "data.max_length",
        "an integer of at least 2",
        "512",
        "tokens of a row; longer ones lose their right end, and are counted",
    ),
    key(
        "data.packing",
        "true, false",
        "false",
        "whether rows are joined into sequences of `max_length`, in which they do not see each other",
    ),
    key(
        "data.shuffle",
        "true, false",
        "true",
        "whether epochs are permuted, by seed and epoch",
    ),
    key(
        "data.group_by_length",
        "true, false",
        "false",
        "whether rows of similar length are put side by side",
    ),
    key(
        "data.cache",
        "`auto`, true, false, a folder",
        "`auto`: from 64 MiB of files on",
        "whether tokenised rows are kept in files and read one by one",
    ),
    key(
        "data.chat_template",
        "a file, or a template's text",
        "the model's",
        "what writes rows of messages",
    ),
    key(
        "data.chat_date",
        "a date, like `\"2026-11-23\"`",
        "the day on which the run began, if the template tells the date",
        "the day, at noon, that templates which call `strftime_now` are told",
    ),
    key(
        "train.steps",
        "an integer above 0",
        "by `epochs`",
        "optimiser steps; not beside `epochs`",
    ),
    key(
        "train.epochs",
        "an integer above 0",
        "1",
        "times that every row is taken",
    ),
    key(
        "train.batch_size",
        "1 to 65536",
        "8",
        "rows of a micro-batch; sequences, if they are packed",
    ),
    key(
        "train.accumulate",
        "1 to 65536",
        "1",
        "micro-batches of a step",
    ),
    key(
        "train.optimizer",
        "`adamw`, `sgd`, `lora_fa`",
        "`adamw`",
        "torch's AdamW and SGD, PEFT's LoRA-FA",
    ),
    key(
        "train.betas",
        "two numbers from 0 to below 1",
        "[0.9, 0.999]",
        "AdamW's and LoRA-FA's",
    ),
    key(
        "train.eps",
        "a number above 0",
        "AdamW's 1e-8, LoRA-FA's 1e-6",
        "AdamW's and LoRA-FA's",
    ),
    key(
        "train.weight_decay",
        "a number of at least 0",
        "0",
        "decay of weights: AdamW's before the update, LoRA-FA's after it, SGD's added to the gradient",
    ),
    key("train.momentum", "a number of at least 0", "0", "SGD's"),
    key("train.dampening", "a number of at least 0", "0", "SGD's"),
    key("train.nesterov", "true, false", "false", "SGD's"),
    key(
        "train.lora_plus_ratio",
        "a number above 0",
        "none",
        "LoRA+: factor of the learning rate of second factors and of tensors with one axis; biases and norms among these do not decay",
    ),
    key(
        "train.groups.NAME.learning_rate_factor",
        "a number of at least 0",
        "1",
        "factor of the learning rate of a group of tensors, such as `lora_B`",
    ),
    key(
        "train.groups.NAME.weight_decay",
        "a number of at least 0",
        "`train.weight_decay`",
        "decay of a group of tensors",
    ),
    key(
        "train.learning_rate",
        "a number of at least 0",
        "2e-4",
        "the highest learning rate",
    ),
    key(
        "train.schedule",
        "`constant`, `linear`, `cosine`",
        "`constant`",
        "how the learning rate falls",
    ),
    key(
        "train.min_learning_rate",
        "a number from 0 to `learning_rate`",
        "0",
        "what a linear or cosine schedule falls towards; it would be there one step after the last",
    ),
    key(
        "train.warmup_steps",
        "an integer of at least 0",
        "0",
        "steps in which the learning rate rises from 0",
    ),
    key(
        "train.warmup_ratio",
        "a number from 0 to 1",
        "by `warmup_steps`",
        "the same as a share of all steps, rounded up",
    ),
    key(
        "train.max_grad_norm",
        "a number of at least 0",
        "1.0",
        "the global norm that gradients are clipped to; 0 turns it off",
    ),
    key(
        "train.label_smoothing",
        "a number from 0 to below 1",
        "0",
        "share of the loss that is the mean over all tokens or classes; not for a regression",
    ),
    key(
        "train.neftune_noise_alpha",
        "a number of at least 0",
        "0",
        "size of the noise on embedded tokens in training",
    ),
    key(
        "train.compute",
        "`f32`, `bf16`",
        "`f32`",
        "precision of products with frozen weights on the CPU",
    ),
    key(
        "train.recompute",
        "true, false",
        "false",
        "whether blocks are computed again on the way back instead of kept",
    ),
    key(
        "train.eval_every",
        "an integer of at least 0",
        "0",
        "steps between evaluations of the held-out rows; 0: only before step 1 and at the end",
    ),
    key(
        "train.save_every",
        "an integer of at least 0",
        "0",
        "steps between checkpoints; 0: only at the end. A new best with `load_best`, an early end and a signal save as well",
    ),
    key(
        "train.keep_checkpoints",
        "an integer above 0",
        "2",
        "how many of the newest checkpoints stay, beside the best one with `load_best`",
    ),
    key(
        "train.best_metric",
        "`loss`, `accuracy`, `f1`, `matthews`, `mse`, `pearson`, `spearman`",
        "`loss`",
        "what evaluations are compared by; what the task has: without labels or choices `loss` alone",
    ),
    key(
        "train.load_best",
        "true, false",
        "false",
        "whether the result is that of the best evaluation",
    ),
    key(
        "train.early_stopping_patience",
        "an integer above 0",
        "none",
        "evaluations without a better one that end the run",
    ),
    key(
        "train.early_stopping_threshold",
        "a number of at least 0",
        "0",
        "by how much a better one must be better",
    ),
    key(
        "train.seed",
        "an integer of at least 0",
        "42",
        "what everything random depends on",
    ),
    key(
        "train.on_non_finite",
        "`stop`, `skip`",
        "`stop`",
        "what becomes of a step whose loss or gradient is not finite",
    ),
    key(
        "output.dir",
        "a folder",
        "must be given",
        "where the run's files go",
    ),
];

const fn key(
    name: &'static str,
    values: &'static str,
    default: &'static str,
    does: &'static str,
) -> Key {
    Key {
        name,
        values,
        default,
        does,
    }
}

/// The keys of a section, without its name; of a table of tables, the name of the table.
pub(crate) fn known(section: &str) -> Vec<&'static str> {
    let mut known: Vec<&str> = KEYS
        .iter()
        .filter_map(|key| {
            let (of, rest) = key.name.split_once('.')?;
            (of == section).then(|| rest.split('.').next().unwrap_or(rest))
        })
        .collect();
    known.dedup();
    known
}

/// The keys as tables in Markdown, one for each section.
#[must_use]
pub fn reference() -> String {
    let mut text = String::new();
    let mut section = "";
    for key in KEYS {
        let of = key.name.split('.').next().unwrap_or_default();
        if of != section {
            section = of;
            // Writing to a string does not fail.
            let _ = write!(
                text,
                "\n## `[{section}]`\n\n| key | values | default | what it does |\n|---|---|---|---|\n"
            );
        }
        let name = &key.name[section.len() + 1..];
        let Key {
            values,
            default,
            does,
            ..
        } = key;
        let _ = writeln!(text, "| `{name}` | {values} | {default} | {does} |");
    }
    text
}
