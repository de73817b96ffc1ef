//! The command line.

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use lowrank::adapter::ResidualBase;
use lowrank::data::ChatDate;
use lowrank::models::{Temperature, TopP};
use lowrank::training::Place;
use lowrank::{AdapterSource, Base, Pooling};
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Parameter-efficient fine-tuning: train, evaluate, merge, inspect and try adapters.
#[derive(Debug, Parser)]
#[command(name = "lowrank", version, max_term_width = 100)]
pub struct Arguments {
    /// Say more on stderr (twice: everything)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Say nothing on stderr but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Fine-tune a model as a run file says
    #[command(
        after_help = "Ctrl-C (SIGINT) and SIGTERM end the run after the step or evaluation that it is in: the step is saved, \
                      --resume goes on from it, and the exit status is 130 or 143. A second signal ends the run at once, \
                      and --resume goes on from the last checkpoint.\n\n\
                      Example: lowrank train run.toml --set train.steps=200 --set output.dir=runs/second"
    )]
    Train(TrainArguments),
    /// Say what a run file would do, without training: what it trains, how much memory it takes, what its rows become
    #[command(
        after_help = "Nothing is written. With --json, `example` has the first training row as `tokens`, what each token \
                      adds to the text, and `supervised`, whether its prediction counts in the loss; without, supervised \
                      stretches stand in [[ ]], a space shows as \u{b7}, an end of line as \u{21b5}.\n\n\
                      Example: lowrank plan run.toml --set train.batch_size=16"
    )]
    Plan(PlanArguments),
    /// Measure a model, with or without adapters: loss, perplexity, accuracy of choices and of written answers, logits
    #[command(
        after_help = "Rows with `choices` are measured by --task choices, rows with `answer` and no `choices` by --task \
                      generate, rows with `label` by --task classification, and others by --task loss, unless --task says \
                      otherwise.\n\n\
                      --task choices scores each choice by the sum of its tokens' log-probabilities without the end token, \
                      and takes the highest, the first of several; `accuracy_norm` divides the scores by the choices' \
                      lengths in UTF-8 bytes.\n\n\
                      --task generate lets the model continue each prompt, always by the likeliest token, until its end \
                      token, a --stop string or --max-new-tokens, and compares final answers (`exact_match`). If the \
                      expected one (the row's `answer`, else its completion, of which what is behind the last #### counts) \
                      is a number, the model's is the number behind the first #### that it writes, else the last number; \
                      both lose $, thousands' commas and a trailing dot. Any other answer must be the whole text, spaces \
                      around it aside; case counts. lm-evaluation-harness looks for answers by other rules, so that its figures differ. \
                      It takes far longer than the loss, which is reported, too.\n\n\
                      `accuracy_low` and `accuracy_high` are the ends of Wilson's 95 % confidence interval.\n\n\
                      Example: lowrank eval --model models/base --adapter runs/first/adapter --data test.jsonl\n\
                      Example: lowrank eval --model models/base --data boolq/test.jsonl --limit 500 --predictions p.jsonl\n\
                      Example: lowrank eval --model models/base --data gsm8k/test.jsonl --task generate --limit 100 --stop \
                      Question: --max-new-tokens 200"
    )]
    Eval(EvalArguments),
    /// Turn texts into vectors with a model, with or without adapters
    #[command(
        after_help = "Rows are {\"text\"} or {\"text\",\"text_pair\"}; what else they hold is not looked at. The file has one \
                      tensor, `embeddings` [rows, dimensions] in f32, in the order of the rows.\n\n\
                      Example: lowrank embed --model models/all-MiniLM-L6-v2 --data texts.jsonl --out texts.safetensors --normalize"
    )]
    Embed(EmbedArguments),
    /// Let a model, with or without adapters, continue a text or answer a message
    #[command(
        after_help = "Example: lowrank generate --model models/base --adapter runs/first/adapter --chat --prompt 'Hello!'"
    )]
    Generate(GenerateArguments),
    /// Talk with a model, with or without adapters: each line is a message
    #[command(
        after_help = "Messages are read from stdin, a line each, and answers are written to stdout; the end of stdin ends the \
                      conversation. What the model has read is kept: a turn costs its own tokens. On a terminal, Ctrl-C ends an answer \
                      and leaves the conversation, and otherwise ends the program.\n\n\
                      Lines that begin with / are commands:\n  \
                      /reset        forget the conversation, but not the system message\n  \
                      /system TEXT  set the system message; without a text, take it away\n  \
                      /save FILE    write the conversation as a {\"messages\"} row; another's file is not replaced\n  \
                      /exit         end\n\
                      A message that begins with / is written with two.\n\n\
                      With --json nothing is written before the end.\n\n\
                      Example: lowrank chat --model models/base --adapter runs/first/adapter --system 'Be brief.'"
    )]
    Chat(ChatArguments),
    /// Fold adapters into their base and write a stand-alone model
    #[command(
        after_help = "Example: lowrank merge --model models/base --adapter runs/first/adapter --out merged --verify"
    )]
    Merge(MergeArguments),
    /// Write an adapter as a plain LoRA adapter, which other tools read
    #[command(
        after_help = "Families whose update is a product of two small matrices lose nothing; what only comes near to one \
                      (ResLoRA's input and middle shortcuts, merged) is written with a warning, and `exact` is false. What \
                      was written is loaded and compared with the adapter.\n\n\
                      Example: lowrank export --model tiny --adapter runs/first/adapter --to lora --out plain"
    )]
    Export(ExportArguments),
    /// Say what an adapter or a model is
    #[command(after_help = "Example: lowrank inspect runs/first/adapter --json")]
    Inspect(InspectArguments),
    /// Say what each family can do: the bases it trains on, what it merges to, how it becomes plain LoRA
    #[command(after_help = "Example: lowrank families --json")]
    Families(FamiliesArguments),
    /// A verb that is planned, or a misspelt one
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// `lowrank train`.
#[derive(Debug, Args)]
pub struct TrainArguments {
    /// The run file (TOML)
    pub run: PathBuf,
    /// Override a key: a dotted name, and a TOML value or a bare word
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Go on from the newest complete checkpoint, or start if there is none
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Throw away what the output folder holds
    #[arg(long)]
    pub overwrite: bool,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// `lowrank plan`.
#[derive(Debug, Args)]
pub struct PlanArguments {
    /// The run file (TOML)
    pub run: PathBuf,
    /// Override a key: a dotted name, and a TOML value or a bare word
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// How a base model and its adapters are given.
#[derive(Debug, Args)]
pub struct ModelArguments {
    /// A model folder in Hugging Face layout, a GGUF file, a hub id (org/name[@revision]), or `tiny` (the embedded model; a
    /// folder is `./tiny`)
    #[arg(long)]
    pub model: String,
    /// An adapter folder or hub id: PATH, or NAME=PATH@WEIGHT; may be given several times. After the last @, a number is
    /// a weight, and anything else the revision of a hub id
    #[arg(long = "adapter", value_name = "ADAPTER")]
    pub adapters: Vec<AdapterSource>,
    /// Refuse an adapter that was trained on a base with other values, instead of warning
    #[arg(long)]
    pub strict_base: bool,
    /// What the model is to adapters that PEFT saved unconverted after PiSSA, OLoRA and the like: original (as it was
    /// before) or residual (what the training left of it)
    #[arg(long, value_name = "BASE")]
    pub residual_base: Option<ResidualBase>,
}

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Task {
    /// The loss of the supervised tokens
    Loss,
    /// The accuracy of multiple choice, and the loss of the right completion
    Choices,
    /// The classes, or the values, of rows with labels: accuracy, F1 and Matthews' correlation, or Pearson's and Spearman's
    Classification,
    /// The exact match of the final answers that the model writes, and the loss
    Generate,
}

impl Task {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Choices => "choices",
            Self::Classification => "classification",
            Self::Generate => "generate",
        }
    }
}

/// `lowrank eval`.
#[derive(Debug, Args)]
pub struct EvalArguments {
    #[command(flatten)]
    pub model: ModelArguments,
    /// Rows (JSON lines, CSV, TSV or Parquet): a path, a glob, or hub:org/name[@revision]/file; may be given several times
    #[arg(long, required = true)]
    pub data: Vec<String>,
    /// What to measure [default: by the kind of the rows]
    #[arg(long)]
    pub task: Option<Task>,
    /// Only the first rows
    #[arg(long)]
    pub limit: Option<NonZeroUsize>,
    /// Rows that run side by side
    #[arg(long, default_value = "8")]
    pub batch_size: NonZeroUsize,
    /// Longer rows lose their right end
    #[arg(long, default_value = "512")]
    pub max_length: NonZeroUsize,
    #[command(flatten)]
    pub template: TemplateArguments,
    /// How the weights are held: as-stored, f32, bf16, f16, f64 or nf4
    #[arg(long, default_value = "as-stored")]
    pub dtype: String,
    /// What the model is computed on: cpu or cuda
    #[arg(long, default_value = "cpu")]
    pub device: Place,
    /// With --task generate: how many tokens are written at most [default: 200]
    #[arg(long)]
    pub max_new_tokens: Option<NonZeroUsize>,
    /// With --task generate: a string that ends the text, and is no part of it; may be given several times
    #[arg(long, allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Write one JSON line a row: index, scores (of choices), prediction, answer, correct, text (of written answers)
    #[arg(long, value_name = "F.jsonl")]
    pub predictions: Option<PathBuf>,
    /// Write the logits of every row, `logits.<row>` [tokens, vocab] in f32; a classifier's are `logits` [rows, classes]
    #[arg(long, value_name = "F.safetensors")]
    pub logits: Option<PathBuf>,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// How a text is continued.
#[derive(Debug, Args)]
pub struct SamplingArguments {
    /// By what logits are divided before a token is drawn; 0 takes the likeliest token, always
    #[arg(long, default_value = "0", allow_negative_numbers = true)]
    pub temperature: Temperature,
    /// Draw from this many of the likeliest tokens; 0: from all
    #[arg(long, default_value = "0", allow_negative_numbers = true)]
    pub top_k: usize,
    /// Draw from the likeliest tokens that have this share of the probability together, after --top-k
    #[arg(long, default_value = "1", allow_negative_numbers = true)]
    pub top_p: TopP,
    /// A string that ends the text, and is no part of it; may be given several times
    #[arg(long, allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// What draws depend on: the same seed writes the same text
    #[arg(long, default_value = "42")]
    pub seed: u64,
}

/// What becomes of the hidden states of a text's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pool {
    /// Their mean
    Mean,
    /// The first token's, [CLS] of encoders
    Cls,
    /// The last token's
    Last,
}

impl Pool {
    /// As it is written on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Last => "last",
        }
    }
}

impl From<Pool> for Pooling {
    fn from(pool: Pool) -> Self {
        match pool {
            Pool::Mean => Self::Mean,
            Pool::Cls => Self::Cls,
            Pool::Last => Self::Last,
        }
    }
}

/// `lowrank embed`.
#[derive(Debug, Args)]
pub struct EmbedArguments {
    #[command(flatten)]
    pub model: ModelArguments,
    /// Rows with a `text`, and a `text_pair` if they are pairs: a path, a glob, or hub:org/name[@revision]/file; may be given
    /// several times
    #[arg(long, required = true)]
    pub data: Vec<String>,
    /// The file to write
    #[arg(long, value_name = "F.safetensors")]
    pub out: PathBuf,
    /// What becomes of the last hidden states of a text's tokens
    #[arg(long, default_value = "mean")]
    pub pooling: Pool,
    /// Give every vector the length 1
    #[arg(long)]
    pub normalize: bool,
    /// Only the first rows
    #[arg(long)]
    pub limit: Option<NonZeroUsize>,
    /// Rows that run side by side
    #[arg(long, default_value = "32")]
    pub batch_size: NonZeroUsize,
    /// Longer texts lose their right end [default: what sentence_bert_config.json says, else 512, or what the model reads if that is less]
    #[arg(long)]
    pub max_length: Option<NonZeroUsize>,
    /// How the weights are held: as-stored, f32, bf16, f16, f64 or nf4
    #[arg(long, default_value = "as-stored")]
    pub dtype: String,
    /// What the model is computed on: cpu or cuda
    #[arg(long, default_value = "cpu")]
    pub device: Place,
    /// Replace the file if it exists
    #[arg(long)]
    pub force: bool,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// What makes a text of messages.
#[derive(Debug, Args)]
pub struct TemplateArguments {
    /// What writes messages, if not the model's own chat template: a file, or a template's text
    #[arg(long, value_name = "TEMPLATE")]
    pub chat_template: Option<String>,
    /// The day, at noon, for templates that write the date, like 2026-11-23; today by default
    #[arg(long, value_name = "DATE")]
    pub chat_date: Option<ChatDate>,
}

impl TemplateArguments {
    /// Sets them, if they were given.
    ///
    /// # Errors
    /// As [`Base::set_chat_template`].
    pub fn set(&self, base: &mut Base) -> lowrank::Result<()> {
        if let Some(date) = self.chat_date {
            base.set_chat_date(date);
        }
        match &self.chat_template {
            Some(template) => base.set_chat_template(template),
            None => Ok(()),
        }
    }
}

/// `lowrank generate`.
#[derive(Debug, Args)]
pub struct GenerateArguments {
    #[command(flatten)]
    pub model: ModelArguments,
    /// The text to continue; `-` reads it from stdin, without its last line end
    #[arg(long, allow_hyphen_values = true)]
    pub prompt: String,
    /// The prompt is a user's message: write it with the model's chat template, and let the model answer
    #[arg(long)]
    pub chat: bool,
    #[command(flatten)]
    pub template: TemplateArguments,
    /// How many tokens are written at most
    #[arg(long, default_value = "128")]
    pub max_new_tokens: NonZeroUsize,
    #[command(flatten)]
    pub sampling: SamplingArguments,
    /// How the weights are held: as-stored, f32, bf16, f16, f64 or nf4
    #[arg(long, default_value = "as-stored")]
    pub dtype: String,
    /// What the model is computed on: cpu or cuda
    #[arg(long, default_value = "cpu")]
    pub device: Place,
    /// Print one JSON object on stdout, when all is written
    #[arg(long)]
    pub json: bool,
}

/// `lowrank chat`.
#[derive(Debug, Args)]
pub struct ChatArguments {
    #[command(flatten)]
    pub model: ModelArguments,
    /// The system message
    #[arg(long, allow_hyphen_values = true)]
    pub system: Option<String>,
    #[command(flatten)]
    pub template: TemplateArguments,
    /// How many tokens an answer has at most
    #[arg(long, default_value = "512")]
    pub max_new_tokens: NonZeroUsize,
    #[command(flatten)]
    pub sampling: SamplingArguments,
    /// How the weights are held: as-stored, f32, bf16, f16, f64 or nf4
    #[arg(long, default_value = "as-stored")]
    pub dtype: String,
    /// What the model is computed on: cpu or cuda
    #[arg(long, default_value = "cpu")]
    pub device: Place,
    /// Print one JSON object on stdout, when all is said
    #[arg(long)]
    pub json: bool,
}

/// `lowrank merge`.
#[derive(Debug, Args)]
pub struct MergeArguments {
    #[command(flatten)]
    pub model: ModelArguments,
    /// The folder to write
    #[arg(long)]
    pub out: PathBuf,
    /// How the weights are written: as-stored, f32, f64, bf16 or f16
    #[arg(long, default_value = "as-stored")]
    pub dtype: String,
    /// Load what was written and compare its logits with the adapted model's
    #[arg(long)]
    pub verify: bool,
    /// Replace the folder if it exists
    #[arg(long)]
    pub force: bool,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// `lowrank export`.
#[derive(Debug, Args)]
pub struct ExportArguments {
    /// The model that the adapter belongs to: as for merge
    #[arg(long)]
    pub model: String,
    /// An adapter folder or hub id
    #[arg(long)]
    pub adapter: PathBuf,
    /// What it becomes
    #[arg(long)]
    pub to: Target,
    /// Approximate by so many ranks (not yet supported)
    #[arg(long)]
    pub rank: Option<NonZeroUsize>,
    /// The folder to write
    #[arg(long)]
    pub out: PathBuf,
    /// Replace the folder if it exists
    #[arg(long)]
    pub force: bool,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// What an adapter can be exported to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// PEFT's LoRA
    Lora,
    /// Not yet supported
    Gguf,
}

/// `lowrank inspect`.
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// An adapter or model folder, a GGUF file, or `tiny` (the embedded model)
    pub path: PathBuf,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// `lowrank families`.
#[derive(Debug, Args)]
pub struct FamiliesArguments {
    /// Print one JSON array on stdout, an object a family
    #[arg(long)]
    pub json: bool,
}
