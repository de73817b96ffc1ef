//! The tokenizer files of a Hugging Face folder, out of the metadata of a GGUF file.

use super::metadata::{Metadata, required};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";

// What GGUF's numbers say of a token.
const NORMAL: i128 = 1;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
const UNUSED: i128 = 5;

/// LLaMA 3's pattern: contractions, words with one sign before them, up to three digits, other signs, line ends, spaces.
const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a text is split before merges apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Splitting {
    /// GPT-2's pattern.
    Gpt2,
    /// Every digit alone, then GPT-2's pattern.
    SmolLm,
    /// LLaMA 3's pattern; a piece that is a token is not merged up to it.
    Llama3,
}

/// A byte-level BPE: its tokens in the order of their ids, and what the file says about them.
pub(super) struct Vocabulary<'a> {
    splitting: Splitting,
    tokens: Vec<&'a str>,
    merges: Vec<(&'a str, &'a str)>,
    /// Ids of tokens that are found in a text before it is split, and whether they are special.
    added: Vec<(usize, bool)>,
    bos: Option<usize>,
    eos: Option<usize>,
    pad: Option<usize>,
    unknown: Option<usize>,
    /// What ends a turn, or a message within one, where that is not the end token.
    turn_ends: Vec<usize>,
    /// Put before and after a text.
    template: (Option<usize>, Option<usize>),
    context: Option<usize>,
    chat_template: Option<&'a str>,
}

/// Whether the file has a tokenizer, of whatever kind.
pub(super) fn exists(metadata: &Metadata) -> bool {
    metadata.contains(MODEL)
}

impl<'a> Vocabulary<'a> {
    pub(super) fn read(metadata: &'a Metadata) -> Result<Self, String> {
        if required(MODEL, metadata.text(MODEL))? != "gpt2" {
            return Err(format!(
                "`{MODEL}` = {} is not yet supported (only \"gpt2\" is)",
                metadata.shown(MODEL)
            ));
        }
        let splitting = match metadata.text(PRE)? {
            Some("gpt-2" | "gpt2") => Splitting::Gpt2,
            Some("smollm") => Splitting::SmolLm,
            Some("llama-bpe" | "llama3" | "llama-v3") => Splitting::Llama3,
            _ => {
                return Err(format!(
                    "`{PRE}` = {} is not yet supported (only \"gpt-2\", \"llama-bpe\" and \"smollm\" are)",
                    metadata.shown(PRE)
                ));
            }
        };
        let tokens = required(TOKENS, metadata.texts(TOKENS))?;
        let id = |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match metadata.count(&key)? {
                Some(id) if id >= tokens.len() => Err(format!(
                    "`{key}` is {id}, expected one of the {} tokens",
                    tokens.len()
                )),
                id => Ok(id),
            }
        };
        let (bos, eos, pad, unknown) = (id("bos")?, id("eos")?, id("padding")?, id("unknown")?);
        let adds = |key: &str, usual: bool| Ok::<_, String>(metadata.flag(key)?.unwrap_or(usual));
        let starts = adds(
            "tokenizer.ggml.add_bos_token",
            splitting == Splitting::Llama3,
        )?;
        let ends = adds("tokenizer.ggml.add_eos_token", false)?;
        Ok(Self {
            splitting,
            merges: merges(metadata)?,
            added: added(metadata, &tokens)?,
            bos,
            eos,
            pad,
            unknown,
            turn_ends: id("eot")?.into_iter().chain(id("eom")?).collect(),
            template: (bos.filter(|_| starts), eos.filter(|_| ends)),
            context: metadata.count("llama.context_length")?,
            chat_template: metadata.text("tokenizer.chat_template")?,
            tokens,
        })
    }

    /// `generation_config.json`.
    pub(super) fn generation_config(&self) -> Value {
        let ids = [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("pad_token_id", self.pad),
        ];
        let mut fields = Map::from_iter([("_from_model_config".to_owned(), true.into())]);
        fields.extend(
            ids.into_iter()
                .filter_map(|(field, id)| Some((field.to_owned(), id?.into()))),
        );
        // Tokens that end a turn end what a model writes, as the end token does.
        let mut ends: Vec<usize> = self.eos.into_iter().collect();
        for end in &self.turn_ends {
            if !ends.contains(end) {
                ends.push(*end);
            }
        }
        if ends.len() > 1 {
            fields.insert("eos_token_id".to_owned(), ends.into());
        }
        fields.into()
    }

    /// `special_tokens_map.json`.
    pub(super) fn special_tokens_map(&self) -> Value {
        let mut fields = Map::new();
        if let (Some(bos), Some(eos)) = (self.bos, self.eos) {
            let both = json!([self.tokens[bos], self.tokens[eos]]);
            fields.insert("additional_special_tokens".to_owned(), both);
        }
        fields.extend(self.roles());
        fields.into()
    }

    /// `tokenizer_config.json`.
    pub(super) fn tokenizer_config(&self) -> Value {
        let added: Map<String, Value> = self
            .added
            .iter()
            .map(|&(id, special)| (id.to_string(), self.described(id, special).into()))
            .collect();
        let mut fields = BTreeMap::new();
        let mut put = |field: &str, value: Value| drop(fields.insert(field.to_owned(), value));
        put("add_prefix_space", false.into());
        put("added_tokens_decoder", added.into());
        if let (Some(bos), Some(eos)) = (self.bos, self.eos) {
            let both = json!([self.tokens[bos], self.tokens[eos]]);
            put("additional_special_tokens", both);
        }
        if let Some(template) = self.chat_template {
            put("chat_template", template.into());
        }
        put("clean_up_tokenization_spaces", false.into());
        if let Some(context) = self.context {
            put("model_max_length", context.into());
        }
        // Not GPT2Tokenizer: transformers 5 would rebuild that one with its own rule for splitting.
        put("tokenizer_class", "PreTrainedTokenizerFast".into());
        fields.extend(self.roles());
        Map::from_iter(fields).into()
    }

    /// `tokenizer.json`.
    pub(super) fn tokenizer(&self) -> Value {
        let added = self.added.iter().map(|&(id, special)| {
            let mut token = Map::from_iter([("id".to_owned(), id.into())]);
            token.extend(self.described(id, special));
            token
        });
        let vocabulary: Map<String, Value> = (0usize..)
            .zip(&self.tokens)
            .map(|(id, token)| ((*token).to_owned(), id.into()))
            .collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": self.splitting.pre_tokenizer(),
            "post_processor": self.post_processor(),
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": self.splitting == Splitting::Llama3,
                "vocab": vocabulary,
                "merges": self.merges,
            },
        })
    }

    fn roles(&self) -> impl Iterator<Item = (String, Value)> {
        let roles = [
            ("bos_token", self.bos),
            ("eos_token", self.eos),
            ("pad_token", self.pad),
            ("unk_token", self.unknown),
        ];
        roles
            .into_iter()
            .filter_map(|(role, id)| Some((role.to_owned(), self.tokens[id?].into())))
    }

    /// A token as `added_tokens` describes it.
    fn described(&self, id: usize, special: bool) -> Map<String, Value> {
        let flags = ["single_word", "lstrip", "rstrip", "normalized"]
            .map(|flag| (flag.to_owned(), false.into()));
        let mut token = Map::from_iter([("content".to_owned(), self.tokens[id].into())]);
        token.extend(flags);
        token.insert("special".to_owned(), special.into());
        token
    }

    fn post_processor(&self) -> Value {
        let (before, after) = self.template;
        if before.or(after).is_none() {
            return Value::Null;
        }
        let part = |sequence: &str, number: usize| {
            let special =
                |id: usize| json!({"SpecialToken": {"id": self.tokens[id], "type_id": number}});
            let text = json!({"Sequence": {"id": sequence, "type_id": number}});
            before
                .map(special)
                .into_iter()
                .chain([text])
                .chain(after.map(special))
                .collect::<Vec<_>>()
        };
        let tokens: Map<String, Value> = [before, after]
            .into_iter()
            .flatten()
            .map(|id| {
                let token = self.tokens[id];
                let described = json!({"id": token, "ids": [id], "tokens": [token]});
                (token.to_owned(), described)
            })
            .collect();
        let pair = [part("A", 0), part("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": part("A", 0),
            "pair": pair,
            "special_tokens": tokens,
        })
    }
}

impl Splitting {
    fn pre_tokenizer(self) -> Value {
        let bytes = |pattern: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": pattern });
        let first = match self {
            Self::Gpt2 => return bytes(true),
            Self::SmolLm => json!({ "type": "Digits", "individual_digits": true }),
            Self::Llama3 => {
                json!({ "type": "Split", "pattern": { "Regex": LLAMA3_PATTERN }, "behavior": "Isolated", "invert": false })
            }
        };
        let pretokenizers = [first, bytes(self == Self::SmolLm)];
        json!({ "type": "Sequence", "pretokenizers": pretokenizers })
    }
}

fn merges(metadata: &Metadata) -> Result<Vec<(&str, &str)>, String> {
    const KEY: &str = "tokenizer.ggml.merges";
    let merges = required(KEY, metadata.texts(KEY))?;
    let pairs = merges.into_iter().map(|merge| {
        merge.split_once(' ').ok_or_else(|| {
            format!("`{KEY}` has {merge:?}, expected two parts with a space between")
        })
    });
    pairs.collect()
}

/// Tokens that are no pieces of ordinary text, and whether they are special.
fn added(metadata: &Metadata, tokens: &[&str]) -> Result<Vec<(usize, bool)>, String> {
    const KEY: &str = "tokenizer.ggml.token_type";
    let mut sorted: Vec<&str> = tokens.to_vec();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("`{TOKENS}` has {:?} twice", pair[0]));
    }
    let types = required(KEY, metadata.integers(KEY))?;
    if types.len() != tokens.len() {
        return Err(format!(
            "`{KEY}` has {} entries for {} tokens",
            types.len(),
            tokens.len()
        ));
    }
    let mut added = Vec::new();
    for (id, kind) in types.into_iter().enumerate() {
        match kind {
            NORMAL | UNUSED => {}
            CONTROL => added.push((id, true)),
            USER_DEFINED => added.push((id, false)),
            other => {
                return Err(format!(
                    "`{KEY}` says {other} of token {:?}, which a byte-level BPE has no use for",
                    tokens[id]
                ));
            }
        }
    }
    Ok(added)
}
